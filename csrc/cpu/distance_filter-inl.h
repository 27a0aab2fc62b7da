// SPDX-License-Identifier: Apache-2.0
// A vector holds one cell of kLanes channels, so that all taps are whole vectors.
//
// The kernel's symmetry is used in both axes: cells at equal distance left and right are added
// first, then multiplied with the weights of half a column of taps, and each of these sums goes to
// two rows of the output. With 25 x 25 taps, 441 of them not zero, 123 multiplications are left.
#pragma once
#include "kernels.h"
#include "vec-inl.h"

namespace {

using fundad::DistanceFilterArgs;
using fundad::cpu::filter_height;
using fundad::cpu::filter_strip;
using fundad::cpu::Fold;
using fundad::cpu::kFilterChannels;
using fundad::cpu::kFoldRows;

constexpr int kTogether = kLanes == 16 ? 2 : 1;  // rows at a time: 26 sums in 32 registers, or 13

// Columns of taps from the middle outwards: those with kRows weights, then those with fewer.
template <int kRows>
__attribute__((always_inline)) inline void fold_columns(const Fold& k,
                                                        const Floats* const (&low)[kTogether],
                                                        const Floats* const (&high)[kTogether],
                                                        std::int64_t column,
                                                        Floats (&sum)[kFoldRows][kTogether]) {
  for (; column < k.end[kRows]; ++column) {
    const float* weight = k.weight + column * k.stride;
    Floats pair[kTogether];
    for (int v = 0; v < kTogether; ++v) pair[v] = low[v][-column] + high[v][column];
    for (int r = 0; r < kRows; ++r) {
      const Floats w = spread(weight[r]);
      for (int v = 0; v < kTogether; ++v) sum[r][v] = fma(w, pair[v], sum[r][v]);
    }
  }
  if constexpr (kRows > 1) fold_columns<kRows - 1>(k, low, high, column, sum);
}

// A cell of kTogether rows into all rows of the output that they reach; `up` and `down` are where
// the fold's first line of the first row goes.
inline void fold_cell(const Fold& k, const Floats* const (&low)[kTogether],
                      const Floats* const (&high)[kTogether], Floats* up, Floats* down) {
  Floats sum[kFoldRows][kTogether] = {};
  fold_columns<kFoldRows>(k, low, high, 0, sum);
#pragma GCC unroll 14
  for (int j = 1 - kTogether; j < kFoldRows; ++j) {
    if (j >= k.rows) break;
    Floats total = up[-j];
    for (int v = 0; v < kTogether; ++v)
      if (j + v >= 0 && j + v < kFoldRows) total += sum[j + v][v];
    up[-j] = total;
  }
#pragma GCC unroll 14
  for (int j = 0; j < kFoldRows + kTogether - 1; ++j) {
    if (j >= k.rows + kTogether - 1) break;
    Floats total = down[j];
    for (int v = 0; v < kTogether; ++v)
      if (j - v >= 0 && j - v < kFoldRows) total += sum[j - v][v];
    down[j] = total;
  }
}

// The filter on one wide plane, which ends with a row of zeros; emit(y, x, value) is called once
// for every cell of the map.
template <class Emit>
inline void filter_plane(const DistanceFilterArgs& a, const Fold* folds, std::int64_t fold_count,
                         const Floats* wide, std::int64_t stride, Floats* sums, const Emit& emit) {
  const std::int64_t strip = filter_strip(a, kLanes), height = filter_height(a);
  const std::int64_t rows = a.h + a.taps - 1;
  for (std::int64_t left = 0; left < a.w; left += strip) {
    const std::int64_t cells = left + strip < a.w ? strip : a.w - left;
    for (std::int64_t i = 0; i < cells * height; ++i) sums[i] = Floats{};
    for (std::int64_t p = 0; p < rows; p += kTogether) {
      const Floats *low[kTogether], *high[kTogether];
      bool any = false;
      for (int v = 0; v < kTogether; ++v) {
        const std::int64_t y = p + v < rows ? a.row[p + v] : -1;
        any = any || y >= 0;
        low[v] = wide + (y < 0 ? a.h : y) * stride + left + (a.taps - 1) / 2;
        high[v] = low[v] + (a.taps % 2 ? 0 : 1);
      }
      // Row p of the wide map is tap i of row p - i of the output, whose sum is taps - 1 further.
      Floats* sum = sums + p;
      for (std::int64_t x = 0; x < cells && any; ++x) {
        for (std::int64_t f = 0; f < fold_count; ++f)
          fold_cell(folds[f], low, high, sum + x * height + (a.taps - 1) / 2 - folds[f].first,
                    sum + x * height + a.taps / 2 + folds[f].first);
        for (int v = 0; v < kTogether; ++v) ++low[v], ++high[v];
      }
      for (int v = 0; v < kTogether; ++v) {
        const std::int64_t y = p + v - (a.taps - 1);  // this was its last tap
        for (std::int64_t x = 0; x < cells && y >= 0 && y < a.h; ++x)
          emit(y, left + x, sum[x * height + v]);
      }
    }
  }
}

// Cells [h*w] of kLanes channels from planes [channels][h*w].
inline void gather_planes(const float* x, std::int64_t cells, int channels, Floats* out) {
  for (std::int64_t first = 0; first < cells; first += kLanes) {
    const int count = static_cast<int>(cells - first < kLanes ? cells - first : kLanes);
    Floats tile[kLanes];
    for (int j = 0; j < kLanes; ++j)
      tile[j] = j < channels ? load_some(x + j * cells + first, count) : Floats{};
    transpose(tile);
    for (int j = 0; j < count; ++j) out[first + j] = tile[j];
  }
}

inline void scatter_planes(const Floats* x, std::int64_t cells, int channels, float* out) {
  for (std::int64_t first = 0; first < cells; first += kLanes) {
    const int count = static_cast<int>(cells - first < kLanes ? cells - first : kLanes);
    Floats tile[kLanes];
    for (int j = 0; j < kLanes; ++j) tile[j] = j < count ? x[first + j] : Floats{};
    transpose(tile);
    for (int j = 0; j < channels; ++j) store_some(out + j * cells + first, tile[j], count);
  }
}

// Channels [channel, channel + kFilterChannels) of an image.
inline void filter_channels(const DistanceFilterArgs& a, const Fold* folds, std::int64_t fold_count,
                            std::int64_t image, std::int64_t channel, float* scratch) {
  constexpr int kVectors = kFilterChannels / kLanes;
  const std::int64_t cells = a.h * a.w, stride = a.w + a.taps - 1;
  Floats* sums = reinterpret_cast<Floats*>(scratch);
  Floats* dense = sums + filter_strip(a, kLanes) * filter_height(a);
  Floats* wide = dense + (a.channels_last ? 0 : cells);
  const std::int64_t plane = (a.h + 1) * stride;
  const float* x = a.x + image * a.c * cells + channel * (a.channels_last ? 1 : cells);
  float* out = a.out + image * a.c * cells + channel * (a.channels_last ? 1 : cells);
  const std::int64_t rest = a.c - channel < kFilterChannels ? a.c - channel : kFilterChannels;
  const auto channels_of = [&](int v) {
    const std::int64_t n = rest - v * kLanes;
    return static_cast<int>(n < 0 ? 0 : n < kLanes ? n : kLanes);
  };
  const auto widen_row = [&](std::int64_t y, int v, const auto& cell) {
    Floats* to = wide + v * plane + y * stride;
    for (std::int64_t j = 0; j < a.w + a.taps - 1; ++j) {
      const std::int64_t from = a.column[j];
      to[j] = from < 0 ? Floats{} : cell(y * a.w + from);
      if (from >= 0 && a.before) to[j] *= spread(a.before[y * a.w + from]);
    }
  };
  const auto finished = [&](std::int64_t i, Floats value) {
    return a.after ? value * spread(a.after[i]) : value;
  };
  for (int v = 0; v < (a.channels_last ? kVectors : 1); ++v)
    for (std::int64_t j = 0; j < stride; ++j) wide[v * plane + a.h * stride + j] = Floats{};
  if (a.channels_last) {
    for (std::int64_t y = 0; y < a.h; ++y)
      for (int v = 0; v < kVectors && channels_of(v) > 0; ++v)
        widen_row(y, v, [&](std::int64_t i) {
          const float* cell = x + i * a.c + v * kLanes;
          // A row ahead: cells are far apart, and no hardware goes looking for them.
          if (y + 1 < a.h) __builtin_prefetch(cell + a.w * a.c);
          return load_some(cell, channels_of(v));
        });
    for (int v = 0; v < kVectors && channels_of(v) > 0; ++v)
      filter_plane(a, folds, fold_count, wide + v * plane, stride, sums,
                   [&](std::int64_t y, std::int64_t column, Floats value) {
                     const std::int64_t i = y * a.w + column;
                     float* to = out + i * a.c + v * kLanes;
                     if (channels_of(v) == kLanes) {
                       stream(to, finished(i, value));
                     } else {
                       store_some(to, finished(i, value), channels_of(v));
                     }
                   });
  } else {
    for (int v = 0; v < kVectors && channels_of(v) > 0; ++v) {
      gather_planes(x + v * kLanes * cells, cells, channels_of(v), dense);
      for (std::int64_t y = 0; y < a.h; ++y)
        widen_row(y, 0, [&](std::int64_t i) { return dense[i]; });
      filter_plane(a, folds, fold_count, wide, stride, sums,
                   [&](std::int64_t y, std::int64_t column, Floats value) {
                     const std::int64_t i = y * a.w + column;
                     dense[i] = finished(i, value);
                   });
      scatter_planes(dense, cells, channels_of(v), out + v * kLanes * cells);
    }
  }
  end_stream();
}

}  // namespace
