// What all kernels share: bfloat16 as 16 bits, an exponential that vectorises, and the threads of torch's own pool.
#pragma once
#include <omp.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using Half = uint16_t;  // bfloat16: the upper half of a float

static inline float wide(Half x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

// Rounds to nearest, ties to even. The NaN of arithmetic stay NaN: the carry does not reach their exponent.
static inline Half narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (Half)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e^x to two units in the last place; 0 below -87.3, a NaN stays one.
static inline float exponential(float x) {
  float bounded = x < -87.3f ? -87.3f : x > 88.0f ? 88.0f : x;
  float whole = std::nearbyint(bounded * 1.44269504088896f);
  float rest = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
  float power = 1.9875691500e-4f;
  power = power * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  int32_t exponent = ((int32_t)whole + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, 4);
  return x < -87.3f ? 0.0f : power * scale;
}

// 1 / x of a normal x up to 2^114 within a unit in the last place: three Newton steps cost less than a division.
static inline float reciprocal(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = 0x7ef311c7 - bits;
  float y;
  std::memcpy(&y, &bits, 4);
  for (int i = 0; i < 3; ++i) y = y * (2.0f - x * y);
  return y;
}

static inline float sigmoid(float x) { return reciprocal(1.0f + exponential(x < -75.0f ? 75.0f : -x)); }

typedef float Lanes __attribute__((vector_size(64)));

static inline Lanes load(const float* from) {
  Lanes x;
  std::memcpy(&x, from, 64);
  return x;
}

static inline Lanes load(const Half* from) {
  typedef uint16_t Halves __attribute__((vector_size(32)));
  typedef uint32_t Words __attribute__((vector_size(64)));
  Halves x;
  std::memcpy(&x, from, 32);
  return (Lanes)(__builtin_convertvector(x, Words) << 16);
}

static inline float sum(Lanes x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < 16; ++i) total += x[i];
  return total;
#endif
}
