// SPDX-License-Identifier: Apache-2.0
// Sine transforms of rows and columns of a box, as products of half the size.
//
// s(i, j) = sin(pi (i+1) (j+1) / (n+1)) is even or odd in i about the middle, as j is even or odd.
// So even results need only the sums of cells that mirror each other, odd ones the differences,
// and on the way back the two parts are added and subtracted: half the multiplications.
#pragma once
#include "kernels.h"
#include "vec-inl.h"

namespace {

using fundad::cpu::kSinesPad;
using fundad::cpu::kSinesPanel;
using fundad::cpu::kSinesRows;
using fundad::cpu::PoissonView;
using fundad::cpu::sines_row;

// One half of a table of sines: [n][row] with row i the i-th result, and its transpose.
struct Half {
  std::int64_t n, row;
  const float* sines;
  const float* transposed;
};

struct Halves {
  Half even, odd;
  const float* eigenvalues;

  Halves(const float* table, std::int64_t n) {
    even = {(n + 1) / 2, sines_row((n + 1) / 2), table, nullptr};
    even.transposed = even.sines + even.n * even.row;
    odd = {n / 2, sines_row(n / 2), even.transposed + even.n * even.row, nullptr};
    odd.transposed = odd.sines + odd.n * odd.row;
    eigenvalues = odd.transposed + odd.n * odd.row;
  }
};

constexpr int kTile = kLanes == 16 ? 12 : 6;  // rows of a tile: 24 sums in 32 registers, 12 in 16

// c[i] = sum over k of a[i][k] b[k], for kRows rows and kWide vectors; one order of summation.
template <int kRows, int kWide>
inline void tile(std::int64_t depth, const float* a, std::int64_t a_row, const float* b,
                 std::int64_t b_row, float* c, std::int64_t c_row) {
  Floats sum[kRows][kWide] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats right[kWide];
    for (int v = 0; v < kWide; ++v) right[v] = load(b + k * b_row + v * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Floats left = spread(a[i * a_row + k]);
      for (int v = 0; v < kWide; ++v) sum[i][v] = fma(left, right[v], sum[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kWide; ++v) store(c + i * c_row + v * kLanes, sum[i][v]);
}

template <int kWide, int kRows = kTile>
inline void tile_of(std::int64_t rows, std::int64_t depth, const float* a, std::int64_t a_row,
                    const float* b, std::int64_t b_row, float* c, std::int64_t c_row) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<kWide, kRows - 1>(rows, depth, a, a_row, b, b_row, c, c_row);
  }
  tile<kRows, kWide>(depth, a, a_row, b, b_row, c, c_row);
}

// c [rows, columns] = a [rows, depth] b [depth, columns]; columns is rounded up to whole vectors.
inline void product(std::int64_t rows, std::int64_t columns, std::int64_t depth, const float* a,
                    std::int64_t a_row, const float* b, std::int64_t b_row, float* c,
                    std::int64_t c_row) {
  const std::int64_t blocks = (rows + kTile - 1) / kTile;
  for (std::int64_t j = 0; j < columns; j += 2 * kLanes)
    for (std::int64_t block = 0; block < blocks; ++block) {
      // Blocks as even as possible: a tile of few rows waits for its own sums.
      const std::int64_t i = rows * block / blocks, some = rows * (block + 1) / blocks - i;
      const float *left = a + i * a_row, *right = b + j;
      float* out = c + i * c_row + j;
      if (columns - j > kLanes) {
        tile_of<2>(some, depth, left, a_row, right, b_row, out, c_row);
      } else {
        tile_of<1>(some, depth, left, a_row, right, b_row, out, c_row);
      }
    }
}

// ------------------------------------------------------------------------------- right-hand side

// All bits of a lane are set where the mask holds. Spelled out: GCC 12 takes a general conversion
// of bytes apart and moves them one by one.
inline Ints holds(const bool* mask) {
#if defined(__AVX512F__)
  __m128i bytes;
  std::memcpy(&bytes, mask, sizeof bytes);
  return (Ints)_mm512_maskz_cvtepu8_epi32(0xffff, bytes) != 0;
#elif defined(__AVX2__)
  std::int64_t bytes;
  std::memcpy(&bytes, mask, sizeof bytes);
  return (Ints)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes)) != 0;
#elif defined(__SSE2__)
  std::int32_t bytes;
  std::memcpy(&bytes, mask, sizeof bytes);
  const __m128i zero = _mm_setzero_si128();
  const __m128i pairs = _mm_unpacklo_epi8(_mm_cvtsi32_si128(bytes), zero);
  return (Ints)_mm_unpacklo_epi16(pairs, zero) != 0;
#else
  Ints lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = mask[i];
  return lanes != 0;
#endif
}

inline Floats magnitude(Floats x) { return (Floats)((Ints)x & INT32_MAX); }

// What blending adds to the differences between cells from `low` on and those a step higher: the
// source's less the target's, where the latter is smaller and the mask holds at the lower cell. NaN
// is not larger. Rounding to float32 does not change which is larger, unless it makes them equal;
// if they point opposite ways that matters, and `unsure` is set.
inline Floats gain(const float* target, const float* source, const bool* mask, std::int64_t low,
                   std::int64_t step, Ints& unsure) {
  const Floats of_target = load(target + low + step) - load(target + low);
  const Floats of_source = load(source + low + step) - load(source + low);
  const Ints wanted = holds(mask + low);
  unsure |= (((Ints)of_source ^ (Ints)of_target) == INT32_MIN) & wanted;
  const Ints larger = magnitude(of_source) > magnitude(of_target);
  return (Floats)((Ints)(of_source - of_target) & larger & wanted);
}

inline float exact_gain(const float* target, const float* source, const bool* mask,
                        std::int64_t low, std::int64_t step) {
  const double of_target = static_cast<double>(target[low + step]) - target[low];
  const double of_source = static_cast<double>(source[low + step]) - source[low];
  const bool larger = __builtin_fabs(of_source) > __builtin_fabs(of_target);
  return mask[low] && larger ? static_cast<float>(of_source - of_target) : 0;
}

// The right-hand side of a row of inner cells that starts at `cell` of the box; `on_face` says
// along which axis the cells before this row lie on a face, where nothing is wanted. What is wanted
// between this row and the next goes to `next`, and comes from there as `before`, unless that is
// null.
inline void divergence(const PoissonView& v, std::int64_t channel, std::int64_t cell,
                       const bool* on_face, const float* before, float* next, float* row) {
  const float* target = v.target + channel * v.channel_cells;
  const float* source = v.source + channel * v.channel_cells;
  const int first = v.sines[1] ? 0 : 1;  // axes are taken in the order middle, first, last
  const std::int64_t steps[3] = {v.step[1], v.step[0], 1}, n = v.n[2];
  const bool faces[2] = {on_face[1], on_face[0]};
  const auto exact = [&](std::int64_t k) {
    float sum = 0;
    for (int axis = first; axis < 3; ++axis) {
      const bool face = axis == 2 ? k == 0 : faces[axis];
      sum += exact_gain(target, source, v.mask, cell + k, steps[axis]);
      if (!face) sum -= exact_gain(target, source, v.mask, cell + k - steps[axis], steps[axis]);
    }
    row[k] = sum;
  };
  if (n < kLanes) {
    for (std::int64_t k = 0; k < n; ++k) exact(k);
    return;
  }
  for (std::int64_t begin = 0; begin < n; begin += kLanes) {
    const std::int64_t k = begin + kLanes < n ? begin : n - kLanes;  // the last two may overlap
    Floats sum = {};
    Ints unsure = {};
    for (int axis = first; axis < 3; ++axis) {
      const std::int64_t step = steps[axis];
      const Floats high = gain(target, source, v.mask, cell + k, step, unsure);
      sum += high;
      if (axis == first) store(next + k, high);
      if (axis < 2 && faces[axis]) continue;
      if (axis == first && before) {
        sum -= load(before + k);
        continue;
      }
      Floats low = gain(target, source, v.mask, cell + k - step, step, unsure);
      if (axis == 2 && k == 0) low[0] = 0;
      sum -= low;
    }
    store(row + k, sum);
    if (not_reaching((Floats)unsure, Floats{}))  // a lane that is set reads as NaN
      for (std::int64_t i = k; i < k + kLanes; ++i) {
        exact(i);
        next[i] = exact_gain(target, source, v.mask, cell + i, steps[first]);
      }
  }
}

// ----------------------------------------------------------------------------------------- rows

// Transforms rows whose mirrored cells are already added and subtracted.
inline void rows_forward(const Halves& h, std::int64_t rows, const float* sums,
                         const float* differences, float* out, std::int64_t out_row) {
  product(rows, h.even.row, h.even.n, sums, h.even.row, h.even.transposed, h.even.row, out,
          out_row);
  // Starts where the even results end: overwrites what they were padded with.
  product(rows, h.odd.row, h.odd.n, differences, h.odd.row, h.odd.transposed, h.odd.row,
          out + h.even.n, out_row);
}

// Rows of a table's width, of which `sums` and `differences` take whole vectors.
inline void fold(const float* row, std::int64_t n, float* sums, float* differences) {
  for (std::int64_t k = 0; k < n / 2; k += kLanes) {
    const int some = static_cast<int>(n / 2 - k < kLanes ? n / 2 - k : kLanes);
    const Floats low = load(row + k), high = reverse_some(load(row + n - k - some), some);
    store(sums + k, low + high);
    store(differences + k, low - high);
  }
  if (n % 2) sums[n / 2] = row[n / 2];
}

inline void unfold(const float* even, const float* odd, std::int64_t n, const float* target,
                   float* out) {
  for (std::int64_t k = 0; k < n / 2; k += kLanes) {
    const int some = static_cast<int>(n / 2 - k < kLanes ? n / 2 - k : kLanes);
    const std::int64_t end = n - k - some;
    const Floats a = load(even + k), b = load(odd + k);
    store_some(out + k, load_some(target + k, some) + (a + b), some);
    store_some(out + end, load_some(target + end, some) + reverse_some(a - b, some), some);
  }
  if (n % 2) out[n / 2] = target[n / 2] + even[n / 2];
}

// -------------------------------------------------------------------------------------- columns

// Up to kSinesPanel columns: rows of x, `x_row` apart, become sums, then differences.
inline void fold_columns(const float* x, std::int64_t x_row, std::int64_t n, std::int64_t columns,
                         float* panel) {
  const std::int64_t half = (n + 1) / 2;
  for (std::int64_t k = 0; k < half; ++k) {
    const float *low = x + k * x_row, *high = x + (n - 1 - k) * x_row;
    float *sum = panel + k * kSinesPanel, *difference = panel + (half + k) * kSinesPanel;
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const Floats a = load(low + j), b = load(high + j);
      if (low == high) {
        store(sum + j, a);
      } else {
        store(sum + j, a + b);
        store(difference + j, a - b);
      }
    }
  }
}

inline void unfold_columns(const float* panel, std::int64_t n, std::int64_t columns, float* x,
                           std::int64_t x_row) {
  const std::int64_t half = (n + 1) / 2;
  for (std::int64_t k = 0; k < half; ++k) {
    const float *even = panel + k * kSinesPanel, *odd = panel + (half + k) * kSinesPanel;
    float *low = x + k * x_row, *high = x + (n - 1 - k) * x_row;
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const Floats a = load(even + j);
      if (low == high) {
        store(low + j, a);
      } else {
        const Floats b = load(odd + j);
        store(low + j, a + b);
        store(high + j, a - b);
      }
    }
  }
}

inline void columns_forward(const Halves& h, std::int64_t columns, const float* panel, float* out,
                            std::int64_t out_row) {
  product(h.even.n, columns, h.even.n, h.even.sines, h.even.row, panel, kSinesPanel, out, out_row);
  product(h.odd.n, columns, h.odd.n, h.odd.sines, h.odd.row, panel + h.even.n * kSinesPanel,
          kSinesPanel, out + h.even.n * out_row, out_row);
}

inline void columns_back(const Halves& h, std::int64_t columns, const float* x, std::int64_t x_row,
                         float* panel) {
  product(h.even.n, columns, h.even.n, h.even.transposed, h.even.row, x, x_row, panel, kSinesPanel);
  product(h.odd.n, columns, h.odd.n, h.odd.transposed, h.odd.row, x + h.even.n * x_row, x_row,
          panel + h.even.n * kSinesPanel, kSinesPanel);
}

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// ----------------------------------------------------------------------------------- three steps

// Where an inner row starts in the box.
inline std::int64_t cell(const PoissonView& v, std::int64_t row) {
  const std::int64_t middle = v.sines[1] ? (row % v.n[1] + 1) * v.step[1] : 0;
  return (row / v.n[1] + 1) * v.step[0] + middle + 1;
}

inline void poisson_begin(const PoissonView& v, std::int64_t channel, std::int64_t group,
                          float* scratch) {
  const std::int64_t all = v.n[0] * v.n[1], first = group * v.group_rows;
  const std::int64_t last = smaller(all, first + v.group_rows);
  float* work = v.work + channel * all * v.row_floats;
  const Halves along(v.sines[2], v.n[2]);
  float *sums = scratch, *differences = sums + kSinesRows * along.even.row;
  float* right = differences + kSinesRows * along.odd.row;
  float* gains[2] = {right + kSinesRows * v.row_floats, right + (kSinesRows + 1) * v.row_floats};
  const std::int64_t chunks = (last - first + kSinesRows - 1) / kSinesRows;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t lo = first + (last - first) * chunk / chunks;
    const std::int64_t rows = first + (last - first) * (chunk + 1) / chunks - lo;
    for (std::int64_t i = 0; i < rows; ++i) {
      const bool on_face[2] = {(lo + i) / v.n[1] == 0, (lo + i) % v.n[1] == 0};
      const std::int64_t place = lo + i - first;
      divergence(v, channel, cell(v, lo + i), on_face, place ? gains[1 - place % 2] : nullptr,
                 gains[place % 2], right + i * v.row_floats);
    }
    for (std::int64_t i = 0; i < rows; ++i)
      fold(right + i * v.row_floats, v.n[2], sums + i * along.even.row,
           differences + i * along.odd.row);
    rows_forward(along, rows, sums, differences, work + lo * v.row_floats, v.row_floats);
    for (std::int64_t i = lo; i < lo + rows; ++i)
      for (std::int64_t j = along.even.n + along.odd.row; j < v.row_floats; ++j)
        work[i * v.row_floats + j] = 0;
  }
  if (!v.sines[1]) return;
  const Halves middle(v.sines[1], v.n[1]);
  const std::int64_t columns = sines_row(v.n[2]);
  for (std::int64_t j = 0; j < columns; j += kSinesPanel) {
    const std::int64_t some = smaller(kSinesPanel, columns - j);
    float* x = work + first * v.row_floats + j;
    fold_columns(x, v.row_floats, v.n[1], some, scratch);
    columns_forward(middle, some, scratch, x, v.row_floats);
  }
}

inline void poisson_across(const PoissonView& v, std::int64_t channel, std::int64_t middle,
                           std::int64_t panel, float* scratch) {
  const std::int64_t start = panel * kSinesPanel, n = v.n[0];
  const std::int64_t columns = smaller(kSinesPanel, sines_row(v.n[2]) - start);
  const std::int64_t x_row = v.n[1] * v.row_floats;
  float* x = v.work + channel * n * x_row + middle * v.row_floats + start;
  const Halves along(v.sines[0], n);
  float *folded = scratch, *transformed = scratch + n * kSinesPanel;
  fold_columns(x, x_row, n, columns, folded);
  columns_forward(along, columns, folded, transformed, kSinesPanel);
  const float* of_last = Halves(v.sines[2], v.n[2]).eigenvalues + start;
  const float of_middle = v.sines[1] ? Halves(v.sines[1], v.n[1]).eigenvalues[middle] : 0;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      float* y = transformed + i * kSinesPanel + j;
      store(y, load(y) / (spread(along.eigenvalues[i] + of_middle) + load(of_last + j)));
    }
  columns_back(along, columns, transformed, kSinesPanel, folded);
  unfold_columns(folded, n, columns, x, x_row);
}

inline void copy_cells(const PoissonView& v, std::int64_t channel, std::int64_t from,
                       std::int64_t to) {
  const std::int64_t at = channel * v.channel_cells + from;
  std::memcpy(v.out + at, v.target + at, (to - from) * sizeof(float));
}

inline void poisson_end(const PoissonView& v, std::int64_t channel, std::int64_t group,
                        float* scratch) {
  const std::int64_t all = v.n[0] * v.n[1], first = group * v.group_rows;
  const std::int64_t last = smaller(all, first + v.group_rows);
  float* work = v.work + channel * all * v.row_floats;
  if (v.sines[1]) {
    const Halves middle(v.sines[1], v.n[1]);
    const std::int64_t columns = sines_row(v.n[2]);
    for (std::int64_t j = 0; j < columns; j += kSinesPanel) {
      const std::int64_t some = smaller(kSinesPanel, columns - j);
      float* x = work + first * v.row_floats + j;
      columns_back(middle, some, x, v.row_floats, scratch);
      unfold_columns(scratch, v.n[1], some, x, v.row_floats);
    }
  }
  const Halves along(v.sines[2], v.n[2]);
  float *even = scratch, *odd = even + kSinesRows * along.even.row;
  const std::int64_t chunks = (last - first + kSinesRows - 1) / kSinesRows;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t lo = first + (last - first) * chunk / chunks;
    const std::int64_t rows = first + (last - first) * (chunk + 1) / chunks - lo;
    const float* x = work + lo * v.row_floats;
    product(rows, along.even.row, along.even.n, x, v.row_floats, along.even.sines, along.even.row,
            even, along.even.row);
    product(rows, along.odd.row, along.odd.n, x + along.even.n, v.row_floats, along.odd.sines,
            along.odd.row, odd, along.odd.row);
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t at = cell(v, lo + i), here = channel * v.channel_cells + at;
      unfold(even + i * along.even.row, odd + i * along.odd.row, v.n[2], v.target + here,
             v.out + here);
      copy_cells(v, channel, at - 1, at);
      copy_cells(v, channel, at + v.n[2], at + v.n[2] + 1);
    }
  }
  // A group ends with a plane if there is a middle axis; faces across the others come with the
  // group beside them.
  const std::int64_t width = v.n[2] + 2, plane = v.step[0];
  if (v.sines[1]) {
    const std::int64_t at = (first / v.n[1] + 1) * plane;
    copy_cells(v, channel, at, at + width);
    copy_cells(v, channel, at + plane - width, at + plane);
  }
  if (first == 0) copy_cells(v, channel, 0, plane);
  if (last == all) copy_cells(v, channel, v.channel_cells - plane, v.channel_cells);
}

}  // namespace
