// What bind.cpp needs of the thread pool; kernels use parallel.h.
#pragma once

extern "C" {
__attribute__((visibility("default"))) int generant_get_num_threads();
__attribute__((visibility("default"))) void generant_set_num_threads(int n);
}
int generant_default_num_threads();
int generant_limit_threads(int n);       // of calls from this thread, 0 lifts it; returns the limit before
void generant_keep_awake(bool on);     // between on and off, workers spin for the next parallel region instead of sleeping
