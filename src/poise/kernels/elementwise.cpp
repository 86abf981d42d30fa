// What layers do between matrix products, on bfloat16 states in one pass through memory, and attention of one new token
// for each row of a cache. Each function is the definition that its Python neighbour computes with torch, in float32.
#include "common.h"

namespace {

struct Step {
  const Half *states, *cos, *sin;
  Half* cache;
  const long* sizes;
  const Half* prompts;
  const long *owner, *prompt_sizes;
  Half* y;
  long n, heads, key_heads, width, rows, columns, slots, prompt_columns;
  float scale;
};

// A head turned by the angles of its token.
template <class To>
inline void turn(const Half* from, const Half* cos, const Half* sin, long width, To to) {
  const long half = width / 2;
#pragma omp simd
  for (long i = 0; i < half; ++i) {
    float first = wide(from[i]), second = wide(from[half + i]);
    to(i, narrow(first * wide(cos[i]) + second * wide(sin[i])));
    to(half + i, narrow(second * wide(cos[half + i]) + first * wide(sin[half + i])));
  }
}

// Scores of a group of queries [kGroup, kWidth] with `count` keys that lie end to end; those of a query are `total` apart.
template <long kWidth, long kGroup>
void score_keys(const float* query, const Half* keys, long count, float* score, long total) {
  for (long column = 0; column < count; ++column) {
    Lanes products[kGroup] = {};
    for (long i = 0; i < kWidth; i += 16) {
      const Lanes key = load(keys + column * kWidth + i);
      for (long g = 0; g < kGroup; ++g) products[g] += load(query + g * kWidth + i) * key;
    }
    for (long g = 0; g < kGroup; ++g) score[g * total + column] = sum(products[g]);
  }
}

// Adds `count` values that lie end to end, each with its weight.
template <long kWidth, long kGroup>
void add_values(const float* weights, const Half* values, long count, Lanes* found, long total) {
  for (long column = 0; column < count; ++column)
    for (long i = 0; i < kWidth / 16; ++i) {
      const Lanes value = load(values + column * kWidth + i * 16);
      for (long g = 0; g < kGroup; ++g) found[g * kWidth / 16 + i] += weights[g * total + column] * value;
    }
}

// Attention of one row to the keys of one head, by its group of queries.
template <long kWidth, long kGroup>
void attend_row(const Step& s, long head, long row, std::vector<float>& score) {
  const Half *cos = s.cos + row * kWidth, *sin = s.sin + row * kWidth;
  const Half* mine = s.states + row * (s.heads + 2 * s.key_heads) * kWidth;
  const long size = s.sizes[row], value_offset = s.rows * s.key_heads * s.columns * kWidth;
  Half* keys = s.cache + (row * s.key_heads + head) * s.columns * kWidth;
  Half* last = keys + (size - 1) * kWidth;
  alignas(64) float query[kGroup * kWidth];
  turn(mine + (s.heads + head) * kWidth, cos, sin, kWidth, [&](long i, Half x) { last[i] = x; });
  std::memcpy(last + value_offset, mine + (s.heads + s.key_heads + head) * kWidth, kWidth * sizeof(Half));
  for (long g = 0; g < kGroup; ++g)
    turn(mine + (head * kGroup + g) * kWidth, cos, sin, kWidth,
         [&](long i, Half x) { query[g * kWidth + i] = s.scale * wide(x); });
  const long before = s.prompts ? s.prompt_sizes[s.owner[row]] : 0, total = before + size;
  const Half* shared = s.prompts + (before ? (s.owner[row] * s.key_heads + head) * s.prompt_columns * kWidth : 0);
  const long shared_offset = s.slots * s.key_heads * s.prompt_columns * kWidth;
  score.resize(kGroup * total);
  score_keys<kWidth, kGroup>(query, shared, before, score.data(), total);
  score_keys<kWidth, kGroup>(query, keys, size, score.data() + before, total);
  for (long g = 0; g < kGroup; ++g) {
    float *each = score.data() + g * total, top = each[0], all = 0;
#pragma omp simd reduction(max : top)
    for (long column = 1; column < total; ++column) top = std::max(top, each[column]);
#pragma omp simd reduction(+ : all)
    for (long column = 0; column < total; ++column) all += each[column] = exponential(each[column] - top);
    const float share = 1.0f / all;
    for (long column = 0; column < total; ++column) each[column] *= share;
  }
  Lanes found[kGroup * kWidth / 16] = {};
  add_values<kWidth, kGroup>(score.data(), shared + shared_offset, before, found, total);
  add_values<kWidth, kGroup>(score.data() + before, keys + value_offset, size, found, total);
  Half* to = s.y + (row * s.heads + head * kGroup) * kWidth;
  for (long i = 0; i < kGroup * kWidth; ++i) to[i] = narrow(found[i / 16][i % 16]);
}

template <long kWidth, long kGroup>
void attend_rows(const Step& s) {
#pragma omp parallel
  {
    std::vector<float> score;
#pragma omp for collapse(2) schedule(static)
    for (long head = 0; head < s.key_heads; ++head)
      for (long row = 0; row < s.n; ++row) attend_row<kWidth, kGroup>(s, head, row, score);
  }
}

using Attend = void (*)(const Step&);

// The compiled width of a head and number of queries of a key: those of the families' usual sizes.
template <long kWidth>
Attend with_group(long group) {
  switch (group) {
    case 1: return attend_rows<kWidth, 1>;
    case 2: return attend_rows<kWidth, 2>;
    case 3: return attend_rows<kWidth, 3>;
    case 4: return attend_rows<kWidth, 4>;
    case 5: return attend_rows<kWidth, 5>;
    case 6: return attend_rows<kWidth, 6>;
    case 7: return attend_rows<kWidth, 7>;
    case 8: return attend_rows<kWidth, 8>;
  }
  return nullptr;
}

}  // namespace

extern "C" {

// y = x / sqrt(mean(x^2) + epsilon) * weight for n rows of `width`; `inverse` [n] keeps the inverse roots.
void rms_norm(const Half* x, const Half* weight, Half* y, float* inverse, long n, long width, float epsilon) {
#pragma omp parallel for schedule(static) if (n * width > 16384)
  for (long row = 0; row < n; ++row) {
    const Half* from = x + row * width;
    Half* to = y + row * width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; ++i) sum += wide(from[i]) * wide(from[i]);
    float factor = 1.0f / std::sqrt(sum / width + epsilon);
    inverse[row] = factor;
#pragma omp simd
    for (long i = 0; i < width; ++i) to[i] = narrow(wide(from[i]) * factor * wide(weight[i]));
  }
}

// The gradient of x, and where `for_weight` is given the sum over rows of that of the weight, added to it.
void rms_norm_backward(const Half* slope, const Half* x, const Half* weight, const float* inverse, Half* for_x,
                       float* for_weight, long n, long width) {
  const int threads = for_weight ? omp_get_max_threads() : 0;
  std::vector<float> summed(threads * width, 0.0f);
#pragma omp parallel for schedule(static) if (n * width > 16384)
  for (long row = 0; row < n; ++row) {
    const Half *s = slope + row * width, *from = x + row * width;
    Half* to = for_x + row * width;
    const float factor = inverse[row];
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (long i = 0; i < width; ++i) along += wide(s[i]) * wide(weight[i]) * wide(from[i]);
    along *= factor * factor / width;
#pragma omp simd
    for (long i = 0; i < width; ++i)
      to[i] = narrow(factor * (wide(s[i]) * wide(weight[i]) - wide(from[i]) * along));
    if (for_weight) {
      float* mine = summed.data() + omp_get_thread_num() * width;
#pragma omp simd
      for (long i = 0; i < width; ++i) mine[i] += wide(s[i]) * wide(from[i]) * factor;
    }
  }
  for (int thread = 0; thread < threads; ++thread)
    for (long i = 0; i < width; ++i) for_weight[i] += summed[thread * width + i];
}

// silu(gate) * up for n rows of `width`; rows of gate and up begin `stride` entries apart.
void swiglu(const Half* gate, const Half* up, Half* y, long n, long width, long stride) {
#pragma omp parallel for schedule(static) if (n * width > 16384)
  for (long row = 0; row < n; ++row) {
    const Half *from = gate + row * stride, *times = up + row * stride;
    Half* to = y + row * width;
#pragma omp simd
    for (long i = 0; i < width; ++i) {
      float g = wide(from[i]);
      to[i] = narrow(g * sigmoid(g) * wide(times[i]));
    }
  }
}

void swiglu_backward(const Half* slope, const Half* gate, const Half* up, Half* for_gate, Half* for_up, long entries) {
#pragma omp parallel for simd schedule(static) if (parallel : entries > 16384)
  for (long i = 0; i < entries; ++i) {
    float g = wide(gate[i]), s = wide(slope[i]), open = sigmoid(g);
    for_up[i] = narrow(s * g * open);
    for_gate[i] = narrow(s * wide(up[i]) * open * (1.0f + g * (1.0f - open)));
  }
}

// Heads of `width` turned by the angles of their tokens: cos and signed sin [n, width]; `heads` of each token.
void apply_rope(const Half* x, const Half* cos, const Half* sin, Half* y, long n, long heads, long width) {
  long half = width / 2;
#pragma omp parallel for schedule(static) if (n * heads * width > 16384)
  for (long row = 0; row < n; ++row) {
    const Half *c = cos + row * width, *s = sin + row * width;
    for (long head = 0; head < heads; ++head) {
      const Half* from = x + (row * heads + head) * width;
      Half* to = y + (row * heads + head) * width;
#pragma omp simd
      for (long i = 0; i < half; ++i) {
        float first = wide(from[i]), second = wide(from[half + i]);
        to[i] = narrow(first * wide(c[i]) + second * wide(s[i]));
        to[half + i] = narrow(second * wide(c[half + i]) + first * wide(s[half + i]));
      }
    }
  }
}

// One decoding step of a layer: turn the new queries and keys, put keys and values into the cache, attend.
//
// states [n, heads + 2 key_heads, width]; cos, sin [n, width]. The layer's cache is [2, rows, key_heads, columns, width],
// of which `sizes` [n] columns are filled once the new one is in; `prompts`, where there is one, is [2, slots, key_heads,
// prompt_columns, width], and row i attends to the first prompt_sizes[owner[i]] columns of slot owner[i] as well.
// Heads are 64 or 128 wide, and at most eight share a key.
void attend_step(const Half* states, const Half* cos, const Half* sin, Half* cache, const long* sizes,
                 const Half* prompts, const long* owner, const long* prompt_sizes, Half* y, long n, long heads,
                 long key_heads, long width, long rows, long columns, long slots, long prompt_columns, float scale) {
  const Step step{states, cos, sin, cache, sizes, prompts, owner, prompt_sizes, y, n, heads, key_heads, width, rows,
                  columns, slots, prompt_columns, scale};
  (width == 64 ? with_group<64> : with_group<128>)(heads / key_heads)(step);
}

// Of n rows of logits: log-probability of ids [n], entropy and log-normaliser, in nats, at 1 / `inverse` temperature.
void read_logits(const Half* logits, const long* ids, float* logprob, float* entropy, float* normaliser, long n,
                 long width, float inverse) {
#pragma omp parallel for schedule(static)
  for (long row = 0; row < n; ++row) {
    const Half* x = logits + row * width;
    float top = wide(x[0]);
#pragma omp simd reduction(max : top)
    for (long i = 1; i < width; ++i) top = std::max(top, wide(x[i]));
    top *= inverse;
    double total = 0, weighted = 0;  // over pieces: in float alone, 50,000 terms would lose digits
    for (long begin = 0; begin < width; begin += 512) {
      const long end = std::min(width, begin + 512);
      float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
      for (long i = begin; i < end; ++i) {
        float below = wide(x[i]) * inverse - top, weight = exponential(below);
        sum += weight;
        product += weight * below;
      }
      total += sum;
      weighted += product;
    }
    normaliser[row] = top + (float)std::log(total);
    logprob[row] = wide(x[ids[row]]) * inverse - normaliser[row];
    entropy[row] = (float)(std::log(total) - weighted / total);
  }
}

// The gradient of the logits [n, width] from that of the log-probabilities [n] of ids.
void read_logits_backward(const Half* logits, const long* ids, const float* slope, const float* normaliser, Half* y,
                          long n, long width, float inverse) {
#pragma omp parallel for schedule(static)
  for (long row = 0; row < n; ++row) {
    const Half* x = logits + row * width;
    Half* to = y + row * width;
    const float s = slope[row] * inverse, below = normaliser[row];
    float chosen = s * (1.0f - exponential(wide(x[ids[row]]) * inverse - below));
#pragma omp simd
    for (long i = 0; i < width; ++i) to[i] = narrow(-s * exponential(wide(x[i]) * inverse - below));
    to[ids[row]] = narrow(chosen);
  }
}

// Draw one token of each of n rows by inverse CDF in two levels: blocks of 256 first, then inside of one.
void sample_tokens(const Half* logits, const double* uniforms, long* ids, float* logprob, long n, long width, float inverse) {
  const long size = 256, blocks = (width + size - 1) / size;
#pragma omp parallel
  {
    std::vector<double> ends(blocks);
#pragma omp for schedule(static)
    for (long row = 0; row < n; ++row) {
      const Half* x = logits + row * width;
      float top = wide(x[0]);
  #pragma omp simd reduction(max : top)
    for (long i = 1; i < width; ++i) top = std::max(top, wide(x[i]));
      top *= inverse;
      double total = 0;
      for (long block = 0; block < blocks; ++block) {
        const long end = std::min(width, (block + 1) * size);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = block * size; i < end; ++i) sum += exponential(wide(x[i]) * inverse - top);
        ends[block] = total += sum;
      }
      const double target = uniforms[row] * total;
      long block = std::upper_bound(ends.begin(), ends.end(), target) - ends.begin();
      block = std::min(block, blocks - 1);
      double reached = block ? ends[block - 1] : 0.0;
      long chosen = -1;  // the last token with weight, where rounding leaves the target beyond the block's end
      for (long i = block * size; i < std::min(width, (block + 1) * size); ++i) {
        const float weight = exponential(wide(x[i]) * inverse - top);
        if (weight > 0) chosen = i;
        reached += weight;
        if (weight > 0 && reached > target) break;
      }
      ids[row] = chosen < 0 ? block * size : chosen;
      logprob[row] = wide(x[ids[row]]) * inverse - top - (float)std::log(total);
    }
  }
}
}
