// SPDX-License-Identifier: Apache-2.0
// The discrete Hartley transform of columns of vectors: H[k] = sum over y of x[y] cas(2 pi k y /
// n), cas = cos + sin.
//
// It is real, and n times its own inverse. The transform of a circular convolution with an even
// kernel is the product of the transforms, as for Fourier's, so that half the numbers do, and
// nothing has to be packed in pairs: a NaN stays in its column.
#pragma once
#include "vec-inl.h"

namespace {

constexpr float kRootHalf = 0.70710678f;

// Two transforms of length n in a row become one of 2n: cells k and n - k of both at once, turned
// by 2 pi k / 2n. Results: k, n + k, n - k, 2n - k.
inline void join(Floats cosine, Floats sine, Floats& even, Floats& odd, Floats& even_back,
                 Floats& odd_back) {
  const Floats forth = fma(cosine, odd, sine * odd_back);
  const Floats back = fma(sine, odd, -(cosine * odd_back));
  odd = even - forth;
  even += forth;
  odd_back = even_back - back;
  even_back += back;
}

inline void join(Floats& even, Floats& odd) {
  const Floats sum = even + odd;
  odd = even - odd;
  even = sum;
}

inline void join_four(Floats (&x)[4]) {
  join(x[0], x[1]);
  join(x[2], x[3]);
  join(x[0], x[2]);
  join(x[1], x[3]);
}

inline void hartley_of_four(Floats* x, std::int64_t stride, std::int64_t columns) {
  for (std::int64_t c = 0; c < columns; ++c) {
    Floats v[4];
    for (int i = 0; i < 4; ++i) v[i] = x[i * stride + c];
    join_four(v);
    for (int i = 0; i < 4; ++i) x[i * stride + c] = v[i];
  }
}

inline void hartley_of_eight(Floats* x, std::int64_t stride, std::int64_t columns) {
  const Floats root = spread(kRootHalf);
  for (std::int64_t c = 0; c < columns; ++c) {
    Floats a[4], b[4];
    for (int i = 0; i < 4; ++i) a[i] = x[i * stride + c], b[i] = x[(4 + i) * stride + c];
    join_four(a);
    join_four(b);
    join(a[0], b[0]);
    join(a[2], b[2]);
    const Floats forth = root * (b[1] + b[3]), back = root * (b[1] - b[3]);
    b[1] = a[1] - forth;
    a[1] += forth;
    b[3] = a[3] - back;
    a[3] += back;
    for (int i = 0; i < 4; ++i) x[i * stride + c] = a[i], x[(4 + i) * stride + c] = b[i];
  }
}

// Four transforms of length n in a row become one of 4n. `turn` has four numbers for every k from
// 1 to n/2 - 1: cosine and sine of 2 pi k / 2n and of 2 pi k / 4n.
inline void join_transforms(Floats* x, std::int64_t stride, std::int64_t columns, std::int64_t n,
                            const float* turn) {
  const Floats root = spread(kRootHalf);
  const std::int64_t step = n * stride;
  Floats* middle = x + n / 2 * stride;
  for (std::int64_t c = 0; c < columns; ++c) {
    Floats v[4];
    for (int i = 0; i < 4; ++i) v[i] = x[i * step + c];
    join_four(v);
    for (int i = 0; i < 4; ++i) x[i * step + c] = v[i];
    for (int i = 0; i < 4; ++i) v[i] = middle[i * step + c];
    join(v[0], v[1]);
    join(v[2], v[3]);
    const Floats forth = root * (v[2] + v[3]), back = root * (v[2] - v[3]);
    middle[c] = v[0] + forth;
    middle[step + c] = v[1] + back;
    middle[2 * step + c] = v[0] - forth;
    middle[3 * step + c] = v[1] - back;
  }
  for (std::int64_t k = 1; k < n / 2; ++k, turn += 4) {
    const Floats cosine = spread(turn[0]), sine = spread(turn[1]);
    const Floats half_cosine = spread(turn[2]), half_sine = spread(turn[3]);
    Floats *forth = x + k * stride, *back = x + (n - k) * stride;
    for (std::int64_t c = 0; c < columns; ++c) {
      Floats v[4], w[4];
      for (int i = 0; i < 4; ++i) v[i] = forth[i * step + c], w[i] = back[i * step + c];
      join(cosine, sine, v[0], v[1], w[0], w[1]);
      join(cosine, sine, v[2], v[3], w[2], w[3]);
      // Now in the order k, n + k, and n - k, 2n - k.
      join(half_cosine, half_sine, v[0], v[2], w[1], w[3]);
      join(half_sine, half_cosine, w[0], w[2], v[1], v[3]);
      for (int i = 0; i < 4; ++i) forth[i * step + c] = v[i], back[i * step + c] = w[i];
    }
  }
}

// In place, for columns of `length` vectors, a power of two from 16 on, `stride` apart; x comes in
// bit-reversed order. `turns` holds those of all steps, one after the other.
inline void hartley(Floats* x, std::int64_t stride, std::int64_t columns, std::int64_t length,
                    const float* turns) {
  // So many columns stay in the first cache from step to step.
  const std::int64_t some = 32768 / (length * static_cast<std::int64_t>(sizeof(Floats)));
  std::int64_t first = length;
  while (first > 8) first /= 4;
  for (std::int64_t c = 0; c < columns; c += some) {
    const std::int64_t count = columns - c < some ? columns - c : some;
    for (std::int64_t i = 0; i < length; i += first)
      if (first == 8) {
        hartley_of_eight(x + i * stride + c, stride, count);
      } else {
        hartley_of_four(x + i * stride + c, stride, count);
      }
    const float* turn = turns;
    for (std::int64_t n = first; n < length; turn += 2 * n - 4, n *= 4)
      for (std::int64_t i = 0; i < length; i += 4 * n)
        join_transforms(x + i * stride + c, stride, count, n, turn);
  }
}

}  // namespace
