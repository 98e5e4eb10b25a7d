// HOST_DEVICE: what is compiled by the C++ compiler and, where nvcc reads it, for the GPU as well.
#pragma once
#ifndef HOST_DEVICE
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ inline
#else
#define HOST_DEVICE inline
#endif
#endif
