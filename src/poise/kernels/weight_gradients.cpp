// The gradient of a linear layer's weight, a product over tokens, on the matrix unit (AMX). Both of its sides are read
// across their rows there, which libraries do by transposing them as a whole.
#include "tiles.h"

#ifdef POISE_TILES
namespace {

// Tokens of a panel, and rows of the result that a thread computes at once: with 576 inputs both sides and the result
// fit a cache of 2 MiB.
constexpr long kDepth = 512, kOutputs = 256;
constexpr long kWords = kTile * kTile;  // 32-bit words of a tile

// Words [16, 16]: pairs of 32 neighbouring rows, of which `present` are there, of 16 columns.
inline void pair_tile(const Half* from, long stride, long present, uint32_t* to) {
  static const Half nothing[kTile] = {};
  for (long pair = 0; pair < kTile; ++pair) {
    const Half* low = 2 * pair < present ? from + 2 * pair * stride : nothing;
    const Half* high = 2 * pair + 1 < present ? from + (2 * pair + 1) * stride : nothing;
    for (long i = 0; i < kTile; ++i) to[pair * kTile + i] = (uint32_t)low[i] | (uint32_t)high[i] << 16;
  }
}

// C [16 rows, 16 columns] (+)= A B of tiles that lie end to end, those of a row of A and of a column of B side by side.
void multiply_tiles(const uint32_t* a, const uint32_t* b, float* c, long c_stride, long rows, long columns, long depth,
                    long a_row, long b_column, bool add) {
  for (long column = 0; column < columns; column += 2)
    for (long row = 0; row < rows; row += 2) {
      const bool below = row + 1 < rows, right = column + 1 < columns;
      float *first = c + row * kTile * c_stride + column * kTile, *second = first + kTile * c_stride;
      const uint32_t *top = a + row * a_row, *left = b + column * b_column;
      const uint32_t *bottom = below ? top + a_row : top, *other = right ? left + b_column : left;
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
      for (long k = 0; k < depth; ++k) {
        _tile_loadd(4, top + k * kWords, 64);
        _tile_loadd(6, left + k * kWords, 64);
        _tile_loadd(5, bottom + k * kWords, 64);
        _tile_loadd(7, other + k * kWords, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, first, c_stride * 4);
      if (right) _tile_stored(1, first + kTile, c_stride * 4);
      if (below) _tile_stored(2, second, c_stride * 4);
      if (below && right) _tile_stored(3, second + kTile, c_stride * 4);
    }
}

}  // namespace

extern "C" {

// Whether the operating system lets this process use the tiles.
int has_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// slope^T x of slope [n, outputs] and x [n, inputs], both widths in sixteens: into `y`, rounded, or added to `sum`.
void sum_over_tokens(const Half* slope, const Half* x, Half* y, float* sum, long n, long outputs, long inputs) {
  const long padded = up(n, 32), threads = omp_get_max_threads(), columns = inputs / kTile;
  const long parts = up((outputs + kOutputs - 1) / kOutputs, threads), share = up((outputs + parts - 1) / parts, kTile);
  static thread_local Aligned<uint32_t> kept;
  uint32_t* pairs = kept.get(padded / 2 * inputs);  // panels of tiles, column by column
#pragma omp parallel
  {
    Tiles tiles;
    Aligned<uint32_t> panel;
    Aligned<float> found;
    alignas(64) uint32_t across[kWords];
#pragma omp for schedule(static)
    for (long token = 0; token < padded; token += 32) {
      const long begin = token / kDepth * kDepth, depth = std::min(kDepth, padded - begin) / 32;
      for (long i = 0; i < columns; ++i)
        pair_tile(x + token * inputs + i * kTile, inputs, n - token,
                  pairs + begin / 2 * inputs + (i * depth + (token - begin) / 32) * kWords);
    }
#pragma omp for schedule(dynamic, 1)
    for (long first = 0; first < outputs; first += share) {
      const long rows = std::min(share, outputs - first) / kTile;
      float* part = found.get(share * inputs);
      uint32_t* left = panel.get(share * kDepth / 2);
      for (long begin = 0; begin < padded; begin += kDepth) {
        const long depth = std::min(kDepth, padded - begin) / 32;
        for (long k = 0; k < depth; ++k)
          for (long row = 0; row < rows; ++row) {
            const long token = begin + 32 * k;
            pair_tile(slope + token * outputs + first + row * kTile, outputs, n - token, across);
            transpose(across, kTile, left + (row * depth + k) * kWords, kTile);
          }
        multiply_tiles(left, pairs + begin / 2 * inputs, part, inputs, rows, columns, depth, depth * kWords,
                       depth * kWords, begin > 0);
      }
      for (long i = 0; i < rows * kTile * inputs; ++i) {
        const long at = first * inputs + i;
        if (sum)
          sum[at] += part[i];
        else
          y[at] = narrow(part[i]);
      }
    }
  }
}
}
#else
extern "C" {
int has_tiles() { return 0; }
void sum_over_tokens() {}
}
#endif
