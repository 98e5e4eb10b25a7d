// What bind.cpp needs of the thread pool; kernels use parallel.h.
#pragma once

extern "C" {
__attribute__((visibility("default"))) int generant_get_num_threads();
__attribute__((visibility("default"))) void generant_set_num_threads(int n);
}
int generant_default_num_threads();
