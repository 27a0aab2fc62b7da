// SPDX-License-Identifier: Apache-2.0
// A vector holds one cell of kLanes channels, so that all taps are whole vectors.
//
// The kernel's symmetry is used in both axes: cells at equal distance left and right are added
// first, then multiplied with the weights of half a column of taps, and each of these sums goes to
// two rows of the output. With 25 x 25 taps, 441 of them not zero, 123 multiplications are left.
//
// Wide kernels take another way: columns are transformed, along which the kernel is then one number
// per column of taps, and with 25 taps a side 13 multiplications per row are left, and the
// transforms.
#pragma once
#include "hartley-inl.h"
#include "kernels.h"
#include "vec-inl.h"

namespace {

using fundad::DistanceFilterArgs;
using fundad::cpu::filter_height;
using fundad::cpu::filter_strip;
using fundad::cpu::FilterSpectrum;
using fundad::cpu::Fold;
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

// Cells [begin, end) of row y of the wide map, of zeros if y is negative.
inline void widen(const DistanceFilterArgs& a, std::int64_t y, const Floats* plane,
                  std::int64_t begin, std::int64_t end, Floats* row) {
  for (std::int64_t j = begin; j < end; ++j) {
    row[j - begin] = Floats{};
    if (y < 0 || a.column[j] < 0) continue;
    const std::int64_t i = y * a.w + a.column[j];
    // Rows of a strip are too short for the hardware to see where they go on.
    __builtin_prefetch(plane + i + 2 * a.w);
    row[j - begin] = a.before ? plane[i] * spread(a.before[i]) : plane[i];
  }
}

// Columns [left, left + cells) of row y of the output; their sums are `step` apart.
inline void finish(const DistanceFilterArgs& a, std::int64_t y, std::int64_t left,
                   std::int64_t cells, const Floats* sum, std::int64_t step, Floats* done) {
  const std::int64_t first = y * a.w + left;
  for (std::int64_t j = 0; j < cells; ++j)
    done[first + j] = a.after ? sum[j * step] * spread(a.after[first + j]) : sum[j * step];
}

// The filter by sums, from one plane to another.
inline void filter_folded(const DistanceFilterArgs& a, const Fold* folds, std::int64_t fold_count,
                          const Floats* plane, Floats* done, Floats* scratch) {
  const std::int64_t strip = filter_strip(a, kLanes), height = filter_height(a);
  const std::int64_t rows = a.h + a.taps - 1, stride = a.w + a.taps - 1;
  Floats* sums = scratch;
  Floats* wide = sums + strip * height;  // ends with a row of zeros
  for (std::int64_t y = 0; y <= a.h; ++y)
    widen(a, y < a.h ? y : -1, plane, 0, stride, wide + y * stride);
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
        if (y >= 0 && y < a.h) finish(a, y, left, cells, sum + v, height, done);
      }
    }
  }
}

// Row k of up to kMost columns of the product with the spectrum, from row k of all.
template <int kColumns>
inline void mix_columns(const float* weight, std::int64_t half, const Floats* x, Floats* out) {
  Floats sum[kColumns] = {};
  for (std::int64_t t = 0; t < half; ++t) {
    const Floats w = spread(weight[t]);
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) sum[c] = fma(w, x[c - t] + x[c + t], sum[c]);
  }
  for (int c = 0; c < kColumns; ++c) out[c] = sum[c];
}

constexpr int kMost = kLanes == 16 ? 16 : 12;  // columns whose sums are in registers together

template <int kColumns = kMost>
inline void mix_some(std::int64_t columns, const float* weight, std::int64_t half, const Floats* x,
                     Floats* out) {
  if constexpr (kColumns > 1) {
    if (columns < kColumns) return mix_some<kColumns - 1>(columns, weight, half, x, out);
  }
  mix_columns<kColumns>(weight, half, x, out);
}

// The filter by transforms of columns, from one plane to another.
inline void filter_transformed(const DistanceFilterArgs& a, const FilterSpectrum& s,
                               const Floats* plane, Floats* done, Floats* scratch) {
  const std::int64_t reach = (a.taps - 1) / 2, half = reach + 1, before = 2 * reach;
  Floats* known = scratch;  // [length, known_row]: `before` columns of the strip before, then new
  Floats* mixed = known + s.length * s.known_row;  // [length, mixed_row]
  for (std::int64_t top = 0; top < a.h; top += s.rows) {
    for (std::int64_t left = 0; left < a.w; left += s.strip) {
      const std::int64_t cells = left + s.strip < a.w ? s.strip : a.w - left;
      std::int64_t begin = left ? before : 0, end = before + cells;
      for (std::int64_t k = 0; k < s.length; ++k) {
        Floats* row = known + k * s.known_row;
        for (std::int64_t j = 0; j < begin; ++j) row[j] = row[s.strip + j];
      }
      for (std::int64_t q = 0; q < s.length; ++q) {
        const std::int64_t wide = top + (q + reach) % s.length;
        widen(a, wide < a.h + before ? a.row[wide] : -1, plane, left + begin, left + end,
              known + s.order[q] * s.known_row + begin);
      }
      while (begin < end && a.column[left + begin] < 0) ++begin;  // zeros stay zeros
      while (begin < end && a.column[left + end - 1] < 0) --end;
      hartley(known + begin, s.known_row, end - begin, s.length, s.turns);
      const std::int64_t blocks = (cells + kMost - 1) / kMost;
      for (std::int64_t k = 0; k < s.length; ++k)
        for (std::int64_t block = 0; block < blocks; ++block) {
          const std::int64_t j = cells * block / blocks, some = cells * (block + 1) / blocks - j;
          mix_some(some, s.weight + k * half, half, known + k * s.known_row + reach + j,
                   mixed + s.order[k] * s.mixed_row + j);
        }
      hartley(mixed, s.mixed_row, cells, s.length, s.turns);
      for (std::int64_t y = 0; y < s.rows && top + y < a.h; ++y)
        finish(a, top + y, left, cells, mixed + y * s.mixed_row, 1, done);
    }
  }
}

// Planes [vectors][h*w] of kLanes channels each, from x [h*w][c], and back.
inline void gather_cells(const float* x, std::int64_t cells, std::int64_t c, int channels,
                         Floats* out) {
  constexpr std::int64_t kAhead = 16;  // cells, each on a page of its own
  constexpr int kLine = 16;
  for (std::int64_t i = 0; i < cells; ++i, x += c) {
    if (i + kAhead < cells)
      for (int v = 0; v < channels; v += kLine) __builtin_prefetch(x + kAhead * c + v);
    for (int v = 0; v < channels; v += kLanes)
      out[v / kLanes * cells + i] = load_some(x + v, channels - v < kLanes ? channels - v : kLanes);
  }
}

inline void scatter_cells(const Floats* x, std::int64_t cells, std::int64_t c, int channels,
                          float* out) {
  for (std::int64_t i = 0; i < cells; ++i, out += c)
    for (int v = 0; v < channels; v += kLanes) {
      if (channels - v < kLanes) {
        store_some(out + v, x[v / kLanes * cells + i], channels - v);
      } else {
        stream(out + v, x[v / kLanes * cells + i]);
      }
    }
  end_stream();
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

// Channels [channel, channel + channels) of an image.
inline void filter_channels(const DistanceFilterArgs& a, const Fold* folds, std::int64_t fold_count,
                            const FilterSpectrum& s, std::int64_t image, std::int64_t channel,
                            int channels, float* scratch) {
  const std::int64_t cells = a.h * a.w;
  const std::int64_t offset = image * a.c * cells + channel * (a.channels_last ? 1 : cells);
  const int vectors = (channels + kLanes - 1) / kLanes;
  // One plane more: the results of each go to where the one before it was.
  Floats* done = reinterpret_cast<Floats*>(scratch);
  Floats* planes = done + cells;
  Floats* rest = planes + vectors * cells;
  const auto some = [&](int v) {
    return channels - v * kLanes < kLanes ? channels - v * kLanes : kLanes;
  };
  if (a.channels_last) {
    gather_cells(a.x + offset, cells, a.c, channels, planes);
  } else {
    for (int v = 0; v < vectors; ++v)
      gather_planes(a.x + offset + v * kLanes * cells, cells, some(v), planes + v * cells);
  }
  for (int v = 0; v < vectors; ++v) {
    if (s.length) {
      filter_transformed(a, s, planes + v * cells, done + v * cells, rest);
    } else {
      filter_folded(a, folds, fold_count, planes + v * cells, done + v * cells, rest);
    }
  }
  if (a.channels_last) {
    scatter_cells(done, cells, a.c, channels, a.out + offset);
  } else {
    for (int v = 0; v < vectors; ++v)
      scatter_planes(done + v * cells, cells, some(v), a.out + offset + v * kLanes * cells);
  }
}

}  // namespace
