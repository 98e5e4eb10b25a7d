// The elementwise functions of ../activation_math.h on single numbers, and an epilogue's activation by its number.
#pragma once
#include "device.h"

namespace {

template <class T> using vec = T;
template <class T> HOST_DEVICE T broadcast(T x) { return x; }

// float32: 0 below -87.3, as on the CPU (subnormal results are flushed).
HOST_DEVICE float vexp(float x) { return x < -87.33654f ? 0.0f : expf(x); }
HOST_DEVICE double vexp(double x) { return exp(x); }

#define GENERANT_SCALAR(name, function)                    \
  HOST_DEVICE float name(float x) { return function##f(x); } \
  HOST_DEVICE double name(double x) { return function(x); }
GENERANT_SCALAR(vlog, log)
GENERANT_SCALAR(vlog1p_unit, log1p)
GENERANT_SCALAR(vtanh, tanh)
GENERANT_SCALAR(verf, erf)
GENERANT_SCALAR(vsin, sin)
GENERANT_SCALAR(vcos, cos)
GENERANT_SCALAR(vabs, fabs)
#undef GENERANT_SCALAR

HOST_DEVICE float vpow(float x, double p) { return powf(x, float(p)); }
HOST_DEVICE double vpow(double x, double p) { return pow(x, p); }

}  // namespace

#include "../activation_math.h"

namespace {

// body(F{}), F the activation of that number in EPILOGUES (ops/conv.py): the order of epilogue_of in cpu/activation.cpp.
template <class Body> HOST_DEVICE auto with_activation(int activation, Body&& body) {
  switch (activation) {
    case 0: return body(Identity{});
    case 1: return body(Relu{});
    case 2: return body(LeakyRelu{});
    case 3: return body(Silu{});
    case 4: return body(Gelu{});
    case 5: return body(Tanh{});
    case 6: return body(Sigmoid{});
    default: return body(Softplus{});
  }
}

template <class T> HOST_DEVICE T activate(int activation, T x) {
  return with_activation(activation, [=](auto f) { return f.template f<T>(x); });
}

}  // namespace
