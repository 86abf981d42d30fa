// Causal attention of prompts to themselves and of responses to their prompt and themselves, on flat tokens, by the
// matrix unit (AMX) of a CPU that has one. Nothing is computed for padding, nor for keys that no query of a block sees.
//
// Scores are kept transposed, keys by queries: sums over keys are then sums of vectors.
#include "tiles.h"

#ifdef POISE_TILES

namespace {

constexpr long kBlock = 32;  // queries that are computed at once

// A sequence: where its own tokens begin, how many they are, and the prompt before them.
struct Sequence {
  long begin, length, prompt_begin, prompt_length;
};

struct Sizes {
  long heads, key_heads, width, query_stride, key_stride;
  float scale;
};

// What a thread works with; grown once, used for all sequences.
struct Scratch {
  Aligned<Half> keys, values, queries, slopes, weights, weight_slopes, transposed;
  Aligned<uint32_t> key_pairs, value_pairs, query_columns, slope_columns, query_pairs, slope_pairs, weight_pairs;
  Aligned<float> scores, score_slopes, found, for_keys, for_values, for_queries;
};

// The keys or values of a sequence, prompt first, end to end: [padded, width], 0 behind the last.
void gather(const Half* from, const Sequence& s, long head, const Sizes& z, Half* to, long padded) {
  for (long i = 0; i < padded; ++i) {
    const long all = s.prompt_length + s.length;
    const long token = i < s.prompt_length ? s.prompt_begin + i : s.begin + i - s.prompt_length;
    if (i < all)
      std::memcpy(to + i * z.width, from + token * z.key_stride + head * z.width, z.width * 2);
    else
      std::memset(to + i * z.width, 0, z.width * 2);
  }
}

// 32 rows of a head from `begin` on, 0 beyond `length`.
void take(const Half* from, long stride, long begin, long length, long width, Half* to) {
  for (long i = 0; i < kBlock; ++i)
    if (i < length)
      std::memcpy(to + i * width, from + (begin + i) * stride, width * 2);
    else
      std::memset(to + i * width, 0, width * 2);
}

// Rows [32, width] as the right side of a product over their width: words [width / 2, 32].
void columns_of(const Half* rows, uint32_t* to, long width) {
  for (long block = 0; block < kBlock; block += kTile)
    for (long i = 0; i < width / 2; i += kTile)
      transpose((const uint32_t*)rows + block * width / 2 + i, width / 2, to + i * kBlock + block, kBlock);
}

// Transposed scores [seen, 32] to weights that are not yet divided by their `sum` [32], where query q sees the first
// limit + q keys; `log` [32] gets the log-normalisers.
void weigh(float* scores, long seen, long limit, long length, float scale, float* log, float* sum) {
  alignas(64) float top[kBlock];
  for (long q = 0; q < kBlock; ++q) top[q] = -INFINITY, sum[q] = 0;
  for (long key = 0; key < seen; ++key) {
    float* row = scores + key * kBlock;
    if (key >= limit)
      for (long q = 0; q < kBlock; ++q) row[q] = key < limit + std::min(q, length - 1) ? row[q] : -INFINITY;
#pragma omp simd
    for (long q = 0; q < kBlock; ++q) top[q] = std::max(top[q], row[q]);
  }
  for (long key = 0; key < seen; ++key) {
    float* row = scores + key * kBlock;
#pragma omp simd
    for (long q = 0; q < kBlock; ++q) {
      row[q] = exponential((row[q] - top[q]) * scale);
      sum[q] += row[q];
    }
  }
  for (long q = 0; q < kBlock; ++q) log[q] = top[q] * scale + std::log(sum[q]);
}

// Words [seen / 2, 32] of neighbouring keys from transposed values [seen, 32], and rows [32, seen] of halves from these.
void as_rows(const float* values, long seen, uint32_t* pairs, Half* rows) {
  for (long key = 0; key < seen; key += 2)
    for (long q = 0; q < kBlock; ++q)
      pairs[key / 2 * kBlock + q] = pair(values[key * kBlock + q], values[(key + 1) * kBlock + q]);
  for (long word = 0; word < seen / 2; word += kTile)
    for (long block = 0; block < kBlock; block += kTile)
      transpose(pairs + word * kBlock + block, kBlock, (uint32_t*)rows + block * seen / 2 + word, seen / 2);
}

void forward(const Sequence& s, long head, const Half* q, const Half* k, const Half* v, Half* y, float* log,
             const Sizes& z, Scratch& w) {
  const long all = s.prompt_length + s.length, padded = up(all, kBlock), group = z.heads / z.key_heads, d = z.width;
  Half *keys = w.keys.get(padded * d), *values = w.values.get(padded * d), *queries = w.queries.get(kBlock * d);
  uint32_t *value_pairs = w.value_pairs.get(padded / 2 * d), *columns = w.query_columns.get(d / 2 * kBlock);
  uint32_t* pairs = w.weight_pairs.get(padded / 2 * kBlock);
  float *scores = w.scores.get(padded * kBlock), *found = w.found.get(kBlock * d);
  Half* rows = w.transposed.get(kBlock * padded);
  gather(k, s, head, z, keys, padded);
  gather(v, s, head, z, values, padded);
  pair_rows(values, value_pairs, padded, d);
  for (long g = head * group; g < (head + 1) * group; ++g)
    for (long begin = 0; begin < s.length; begin += kBlock) {
      const long length = std::min(kBlock, s.length - begin);
      const long seen = std::min(padded, up(s.prompt_length + begin + length, kBlock));
      alignas(64) float normaliser[kBlock], sum[kBlock];
      take(q + g * d, z.query_stride, s.begin + begin, length, d, queries);
      columns_of(queries, columns, d);
      multiply(keys, d, columns, kBlock, scores, kBlock, seen, kBlock, d, false);
      weigh(scores, seen, s.prompt_length + begin + 1, length, z.scale, normaliser, sum);
      as_rows(scores, seen, pairs, rows);
      multiply(rows, seen, value_pairs, d, found, d, kBlock, d, seen, false);
      for (long i = 0; i < length; ++i) {
        const long token = s.begin + begin + i;
        log[token * z.heads + g] = normaliser[i];
        for (long j = 0; j < d; ++j) y[(token * z.heads + g) * d + j] = narrow(found[i * d + j] / sum[i]);
      }
    }
}

// Adds the gradients of the sequence's keys and values to for_keys and for_values [padded, width], prompt first.
void backward(const Sequence& s, long head, const Half* slope, const Half* q, const Half* k, const Half* v,
              const float* log, Half* for_q, float* for_keys, float* for_values, const Sizes& z, Scratch& w) {
  const long all = s.prompt_length + s.length, padded = up(all, kBlock), group = z.heads / z.key_heads, d = z.width;
  Half *keys = w.keys.get(padded * d), *values = w.values.get(padded * d), *queries = w.queries.get(kBlock * d);
  Half *slopes = w.slopes.get(kBlock * d), *weights = w.weights.get(padded * kBlock);
  Half *weight_slopes = w.weight_slopes.get(padded * kBlock), *rows = w.transposed.get(kBlock * padded);
  uint32_t *key_pairs = w.key_pairs.get(padded / 2 * d), *columns = w.query_columns.get(d / 2 * kBlock);
  uint32_t *slope_columns = w.slope_columns.get(d / 2 * kBlock), *pairs = w.weight_pairs.get(padded / 2 * kBlock);
  uint32_t *query_pairs = w.query_pairs.get(kBlock / 2 * d), *slope_pairs = w.slope_pairs.get(kBlock / 2 * d);
  float *scores = w.scores.get(padded * kBlock), *score_slopes = w.score_slopes.get(padded * kBlock);
  float* for_queries = w.for_queries.get(kBlock * d);
  gather(k, s, head, z, keys, padded);
  gather(v, s, head, z, values, padded);
  pair_rows(keys, key_pairs, padded, d);
  for (long g = head * group; g < (head + 1) * group; ++g)
    for (long begin = 0; begin < s.length; begin += kBlock) {
      const long length = std::min(kBlock, s.length - begin), first = s.begin + begin;
      const long seen = std::min(padded, up(s.prompt_length + begin + length, kBlock));
      alignas(64) float normaliser[kBlock], along[kBlock] = {};
      for (long i = 0; i < kBlock; ++i) normaliser[i] = log[(first + std::min(i, length - 1)) * z.heads + g];
      take(q + g * d, z.query_stride, first, length, d, queries);
      take(slope + g * d, z.heads * d, first, length, d, slopes);
      columns_of(queries, columns, d);
      columns_of(slopes, slope_columns, d);
      pair_rows(queries, query_pairs, kBlock, d);
      pair_rows(slopes, slope_pairs, kBlock, d);
      multiply(keys, d, columns, kBlock, scores, kBlock, seen, kBlock, d, false);
      multiply(values, d, slope_columns, kBlock, score_slopes, kBlock, seen, kBlock, d, false);
      const long limit = s.prompt_length + begin + 1;
      for (long key = 0; key < seen; ++key)
#pragma omp simd
        for (long i = 0; i < kBlock; ++i) {
          const long at = key * kBlock + i;
          const float weight = exponential(scores[at] * z.scale - normaliser[i]);
          scores[at] = key < limit + std::min(i, length - 1) && i < length ? weight : 0.0f;
          weights[at] = narrow(scores[at]);
          along[i] += scores[at] * score_slopes[at];
        }
      for (long key = 0; key < seen; ++key)
#pragma omp simd
        for (long i = 0; i < kBlock; ++i) {
          const long at = key * kBlock + i;
          score_slopes[at] = scores[at] * (score_slopes[at] - along[i]) * z.scale;
          weight_slopes[at] = narrow(score_slopes[at]);
        }
      as_rows(score_slopes, seen, pairs, rows);
      multiply(weights, kBlock, slope_pairs, d, for_values, d, seen, d, kBlock, true);
      multiply(weight_slopes, kBlock, query_pairs, d, for_keys, d, seen, d, kBlock, true);
      multiply(rows, seen, key_pairs, d, for_queries, d, kBlock, d, seen, false);
      for (long i = 0; i < length; ++i)
        for (long j = 0; j < d; ++j) for_q[((first + i) * z.heads + g) * d + j] = narrow(for_queries[i * d + j]);
    }
}

}  // namespace

extern "C" {

// Attention of `prompts` sequences and of `responses` more, each with the prompt it belongs to.
//
// begin, length [prompts + responses] in tokens; owner [responses]. q has rows of query_stride, k and v of key_stride
// halves; y [N, heads width], and log [N, heads] keeps the log-normalisers.
void attend(const Half* q, const Half* k, const Half* v, Half* y, float* log, const long* begin, const long* length,
            const long* owner, long prompts, long responses, long heads, long key_heads, long width,
            long query_stride, long key_stride, float scale) {
  const Sizes z{heads, key_heads, width, query_stride, key_stride, scale};
#pragma omp parallel
  {
    Tiles tiles;
    Scratch scratch;
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (long i = 0; i < prompts + responses; ++i)
      for (long head = 0; head < key_heads; ++head) {
        const long own = i < prompts ? -1 : owner[i - prompts];
        const Sequence s{begin[i], length[i], own < 0 ? 0 : begin[own], own < 0 ? 0 : length[own]};
        forward(s, head, q, k, v, y, log, z, scratch);
      }
  }
}

// The gradients of q [N, heads width], k and v [N, key_heads width] from that of y.
void attend_backward(const Half* slope, const Half* q, const Half* k, const Half* v, const float* log, Half* for_q,
                     Half* for_k, Half* for_v, const long* begin, const long* length, const long* owner, long prompts,
                     long responses, long heads, long key_heads, long width, long query_stride, long key_stride,
                     float scale) {
  const Sizes z{heads, key_heads, width, query_stride, key_stride, scale};
  std::vector<std::vector<long>> members(prompts);
  for (long i = 0; i < responses; ++i) members[owner[i]].push_back(prompts + i);
#pragma omp parallel
  {
    Tiles tiles;
    Scratch scratch;
    Aligned<float> key_sums, value_sums;
    auto write = [&](long sequence, long head, const float* keys, const float* values) {
      for (long i = 0; i < length[sequence]; ++i)
        for (long j = 0; j < width; ++j) {
          const long at = ((begin[sequence] + i) * key_heads + head) * width + j;
          for_k[at] = narrow(keys[i * width + j]);
          for_v[at] = narrow(values[i * width + j]);
        }
    };
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (long prompt = 0; prompt < prompts; ++prompt)
      for (long head = 0; head < key_heads; ++head) {
        const long shared = length[prompt] * width;
        float *keys = key_sums.get(up(length[prompt], kBlock) * width);
        float *values = value_sums.get(up(length[prompt], kBlock) * width);
        std::fill(keys, keys + up(length[prompt], kBlock) * width, 0.0f);
        std::fill(values, values + up(length[prompt], kBlock) * width, 0.0f);
        backward({begin[prompt], length[prompt], 0, 0}, head, slope, q, k, v, log, for_q, keys, values, z, scratch);
        for (long i : members[prompt]) {
          const long entries = up(length[prompt] + length[i], kBlock) * width;
          float *own_keys = scratch.for_keys.get(entries), *own_values = scratch.for_values.get(entries);
          std::fill(own_keys, own_keys + entries, 0.0f);
          std::fill(own_values, own_values + entries, 0.0f);
          backward({begin[i], length[i], begin[prompt], length[prompt]}, head, slope, q, k, v, log, for_q, own_keys,
                   own_values, z, scratch);
          for (long j = 0; j < shared; ++j) keys[j] += own_keys[j], values[j] += own_values[j];
          write(i, head, own_keys + shared, own_values + shared);
        }
        write(prompt, head, keys, values);
      }
  }
}
}
#else
extern "C" {
void attend() {}
void attend_backward() {}
}
#endif
