// Products on the matrix unit (AMX) of a CPU: its tiles, and the layouts that they read.
#pragma once
#include "common.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__)
#define POISE_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr long kTile = 16;  // rows of a tile, and 32-bit words in each of them

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// All tiles 16 by 64 bytes while this lives; then what other libraries had configured in this thread.
struct Tiles {
  alignas(64) uint8_t before[64];
  Tiles() {
    static const TileConfig config;
    _tile_storeconfig(before);
    _tile_loadconfig(&config);
  }
  ~Tiles() { before[0] ? _tile_loadconfig(before) : _tile_release(); }
};

template <class T>
struct Aligned {  // 64-byte aligned, grown when asked for more
  std::vector<T> store;
  T* get(size_t count) {
    if (store.size() < count + 64) store.resize(count + 64);
    return (T*)(((uintptr_t)store.data() + 63) & ~(uintptr_t)63);
  }
};

// 16 x 16 words of 32 bits, transposed.
inline void transpose(const uint32_t* from, long from_stride, uint32_t* to, long to_stride) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_stride);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 2; ++j) {
      r[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
      r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
    }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(to + i * to_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
    _mm512_storeu_si512(to + (8 + i) * to_stride, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
    _mm512_storeu_si512(to + (4 + i) * to_stride, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88));
    _mm512_storeu_si512(to + (12 + i) * to_stride, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd));
  }
}

inline uint32_t pair(float low, float high) { return (uint32_t)narrow(low) | (uint32_t)narrow(high) << 16; }

// Rows [count, width] two by two, as the right side of a product over rows: [count / 2, width] words.
inline void pair_rows(const Half* from, uint32_t* to, long count, long width) {
  for (long row = 0; row < count; row += 2)
    for (long i = 0; i < width; ++i)
      to[row / 2 * width + i] = (uint32_t)from[row * width + i] | (uint32_t)from[(row + 1) * width + i] << 16;
}

// C [rows, columns] (+)= A [rows, depth] B, rows and columns in tiles of 16 and depth in tiles of 32: A of halves, B of
// words [depth / 2, columns]. Four tiles of C at a time, so that each one of A and B is used twice.
inline void multiply(const Half* a, long a_stride, const uint32_t* b, long b_stride, float* c, long c_stride, long rows,
                     long columns, long depth, bool add) {
  for (long row = 0; row < rows; row += 2 * kTile)
    for (long column = 0; column < columns; column += 2 * kTile) {
      const bool below = row + kTile < rows, right = column + kTile < columns;
      float *first = c + row * c_stride + column, *second = first + kTile * c_stride;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      if (add) {
        _tile_loadd(0, first, c_stride * 4);
        if (right) _tile_loadd(1, first + kTile, c_stride * 4);
        if (below) _tile_loadd(2, second, c_stride * 4);
        if (below && right) _tile_loadd(3, second + kTile, c_stride * 4);
      }
      for (long k = 0; k < depth; k += 32) {
        _tile_loadd(4, a + row * a_stride + k, a_stride * 2);
        _tile_loadd(6, b + k / 2 * b_stride + column, b_stride * 4);
        _tile_dpbf16ps(0, 4, 6);
        if (right) {
          _tile_loadd(7, b + k / 2 * b_stride + column + kTile, b_stride * 4);
          _tile_dpbf16ps(1, 4, 7);
        }
        if (below) {
          _tile_loadd(5, a + (row + kTile) * a_stride + k, a_stride * 2);
          _tile_dpbf16ps(2, 5, 6);
          if (right) _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, first, c_stride * 4);
      if (right) _tile_stored(1, first + kTile, c_stride * 4);
      if (below) _tile_stored(2, second, c_stride * 4);
      if (below && right) _tile_stored(3, second + kTile, c_stride * 4);
    }
}

inline long up(long count, long to) { return (count + to - 1) / to * to; }

}  // namespace
#endif
