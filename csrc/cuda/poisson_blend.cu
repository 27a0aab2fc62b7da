// SPDX-License-Identifier: Apache-2.0
// Solves for the change e = result - target, which is zero on the faces: its right-hand side comes
// from one pass over the masked differences, and no face has to be taken out of it. Sine products
// along every axis, a division by the eigenvalues, and the same products again. A launch serves all
// boxes of the batch, so their number costs no launches.
#include "common.cuh"
#include "fundad/poisson_blend_cuda.h"

namespace fundad::cuda {
namespace {

constexpr int kThreads = kPoissonThreads, kRows = kPoissonRows, kColumns = kPoissonColumns;
constexpr int kSlice = 16;  // cells along the axis that a tile takes at a time
constexpr int kOwn = 4;     // a thread makes 4 x 4 results
constexpr int kAcross = kColumns / kOwn;
static_assert(kThreads == kRows / kOwn * kAcross);
static_assert(sizeof(PoissonBox) == 128);

struct Block {
  const PoissonBox* box;
  std::int64_t number;  // among the box's blocks
};

__device__ Block find(const PoissonArgs& a, const std::int64_t* starts) {
  std::int64_t low = 0, high = a.count;  // the last box that starts at or before this block
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (starts[middle] <= blockIdx.x ? low : high) = middle;
  }
  return {a.boxes + low, blockIdx.x - starts[low]};
}

__device__ std::int64_t inside(const PoissonBox& box, int axis) {
  return axis < box.first ? 1 : box.size[axis] - 2;
}

struct Cell {
  std::int64_t c, at[3];
};

// Element i of an array [c, inside0, inside1, inside2]; counted within the inside.
__device__ Cell cell_inside(const PoissonBox& box, std::int64_t i) {
  Cell cell;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    cell.at[axis] = i % inside(box, axis);
    i /= inside(box, axis);
  }
  cell.c = i;
  return cell;
}

template <class T>
__global__ void __launch_bounds__(kThreads) poisson_tables(PoissonArgs a) {
  const std::int64_t n = a.lengths[blockIdx.x];
  T* table = static_cast<T*>(a.table) + a.offsets[blockIdx.x];
  const double scale = sqrt(2.0 / (n + 1));
  for (std::int64_t s = threadIdx.x; s < 2 * (n + 1); s += kThreads)
    table[s] = static_cast<T>(sinpi(static_cast<double>(s) / (n + 1)) * scale);
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) {
    const double half = sinpi((i + 1) / (2.0 * (n + 1)));
    table[2 * (n + 1) + i] = static_cast<T>(-4 * half * half);
  }
}

// What the source adds to the difference from a cell to its neighbour. Decided in float64: levels
// of an 8-bit image are full of ties that rounding would break.
template <class T>
__device__ T wanted(const T* target, const T* source, const bool* mask, std::int64_t cell,
                    std::int64_t step) {
  const double of_target = static_cast<double>(target[cell + step]) - target[cell];
  const double of_source = static_cast<double>(source[cell + step]) - source[cell];
  const bool chosen = mask[cell] && fabs(of_source) > fabs(of_target);
  return chosen ? static_cast<T>(of_source - of_target) : T{0};
}

template <class T>
__global__ void __launch_bounds__(kThreads) poisson_right_hand_side(PoissonArgs a) {
  const Block block = find(a, a.starts.cells_inside);
  const PoissonBox& box = *block.box;
  const std::int64_t i = block.number * kThreads + threadIdx.x;
  const std::int64_t plane = box.size[1] * box.size[2], volume = box.size[0] * plane;
  const Cell cell = cell_inside(box, i);
  if (cell.c >= box.c) return;
  const std::int64_t strides[3] = {plane, box.size[2], 1};
  std::int64_t at = 0;
  for (int axis = 0; axis < 3; ++axis) at += (cell.at[axis] + (axis >= box.first)) * strides[axis];
  const T* target = static_cast<const T*>(box.target) + cell.c * volume;
  const T* source = static_cast<const T*>(box.source) + cell.c * volume;
  T total = 0;
  for (int axis = 0; axis < 3; ++axis) {
    if (axis < box.first) continue;
    const std::int64_t step = strides[axis];
    T term = wanted(target, source, box.mask, at, step);
    // The cell before lies on a face if this is the first inside: a face counts as outside the
    // mask.
    if (cell.at[axis] > 0) term -= wanted(target, source, box.mask, at - step, step);
    total += term;
  }
  static_cast<T*>(a.work[0])[box.work + i] = total;
}

// One product with the sines of an axis, from one work area into the other. The last one before the
// way back divides by the eigenvalues.
template <class T>
__global__ void __launch_bounds__(kThreads) poisson_product(PoissonArgs a, int axis, bool inverse) {
  __shared__ T sines[kSlice][kRows];
  __shared__ T values[kSlice][kColumns + 1];
  const Block block = find(a, a.starts.tiles[axis]);
  const PoissonBox& box = *block.box;
  const int first = static_cast<int>(box.first);
  const int done = inverse ? 3 - first + (axis - first) : 2 - axis;  // products of this box so far
  const T* from = static_cast<const T*>(a.work[done % 2]) + box.work;
  T* to = static_cast<T*>(a.work[1 - done % 2]) + box.work;

  const std::int64_t n = inside(box, axis);
  std::int64_t after = 1, columns = box.c;
  for (int other = 0; other < 3; ++other) {
    if (other > axis) after *= inside(box, other);
    if (other != axis) columns *= inside(box, other);
  }
  const std::int64_t row_tiles = (n + kRows - 1) / kRows;
  const std::int64_t row0 = block.number % row_tiles * kRows;
  const std::int64_t column0 = block.number / row_tiles * kColumns;
  const T* table = static_cast<const T*>(a.table) + box.table[axis];
  const auto place = [&](std::int64_t row, std::int64_t column) {
    return (column / after * n + row) * after + column % after;
  };

  const int own_row = static_cast<int>(threadIdx.x) / kAcross * kOwn;
  const int own_column = static_cast<int>(threadIdx.x) % kAcross;
  T sum[kOwn][kOwn] = {};
  for (std::int64_t slice = 0; slice < n; slice += kSlice) {
    for (int e = threadIdx.x; e < kSlice * kRows; e += kThreads) {
      const std::int64_t j = slice + e / kRows, i = row0 + e % kRows;
      sines[e / kRows][e % kRows] =
          i < n && j < n ? table[(i + 1) * (j + 1) % (2 * (n + 1))] : T{0};
    }
    for (int e = threadIdx.x; e < kSlice * kColumns; e += kThreads) {
      // Neighbours in memory lie along the axis if it is the last one, else across it.
      const int row = after == 1 ? e % kSlice : e / kColumns;
      const int column = after == 1 ? e / kSlice : e % kColumns;
      const bool there = slice + row < n && column0 + column < columns;
      values[row][column] = there ? from[place(slice + row, column0 + column)] : T{0};
    }
    __syncthreads();
    T part[kOwn][kOwn] = {};  // short sums, added up: less is lost than in one long one
#pragma unroll
    for (int s = 0; s < kSlice; ++s)
      for (int i = 0; i < kOwn; ++i)
        for (int j = 0; j < kOwn; ++j)
          part[i][j] += sines[s][own_row + i] * values[s][own_column + j * kAcross];
    for (int i = 0; i < kOwn; ++i)
      for (int j = 0; j < kOwn; ++j) sum[i][j] += part[i][j];
    __syncthreads();
  }

  for (int i = 0; i < kOwn; ++i)
    for (int j = 0; j < kOwn; ++j) {
      const std::int64_t row = row0 + own_row + i, column = column0 + own_column + j * kAcross;
      if (row >= n || column >= columns) continue;
      const std::int64_t index = place(row, column);
      T value = sum[i][j];
      if (!inverse && axis == first) {
        const Cell cell = cell_inside(box, index);
        T eigenvalue = 0;
#pragma unroll
        for (int other = 0; other < 3; ++other)
          if (other >= first)
            eigenvalue += static_cast<const T*>(
                a.table)[box.table[other] + 2 * (inside(box, other) + 1) + cell.at[other]];
        value /= eigenvalue;
      }
      to[index] = value;
    }
}

// An even number of products leaves the change in the first work area.
template <class T>
__global__ void __launch_bounds__(kThreads) poisson_add(PoissonArgs a) {
  const Block block = find(a, a.starts.cells);
  const PoissonBox& box = *block.box;
  const std::int64_t i = block.number * kThreads + threadIdx.x;
  if (i >= box.c * box.size[0] * box.size[1] * box.size[2]) return;
  T value = static_cast<const T*>(box.target)[i];
  std::int64_t rest = i, index = 0, stride = 1;
  bool is_inside = true;
  for (int axis = 2; axis >= 0; --axis) {
    const std::int64_t at = rest % box.size[axis] - (axis >= box.first);
    rest /= box.size[axis];
    is_inside = is_inside && at >= 0 && at < inside(box, axis);
    index += at * stride;
    stride *= inside(box, axis);
  }
  if (is_inside) value += static_cast<const T*>(a.work[0])[box.work + rest * stride + index];
  static_cast<T*>(box.out)[i] = value;
}

dim3 grid(std::int64_t blocks) {
  if (blocks > INT32_MAX) throw std::invalid_argument("poisson_blend: too many cells in one call");
  return dim3(static_cast<unsigned>(blocks));
}

template <class T>
void run(const PoissonArgs& a, void* stream) {
  const dim3 threads(kThreads);
  const std::int64_t* blocks = a.starts.blocks;
  launch("poisson_tables", poisson_tables<T>, grid(a.tables), threads, stream, a);
  launch("poisson_right_hand_side", poisson_right_hand_side<T>, grid(blocks[0]), threads, stream,
         a);
  for (int pass = 0; pass < 6; ++pass) {
    const int axis = pass < 3 ? 2 - pass : pass - 3;
    if (blocks[2 + axis] == 0) continue;  // no box has this axis
    launch("poisson_product", poisson_product<T>, grid(blocks[2 + axis]), threads, stream, a, axis,
           pass >= 3);
  }
  launch("poisson_add", poisson_add<T>, grid(blocks[1]), threads, stream, a);
}

}  // namespace

void poisson_blend(const PoissonArgs& a, bool wide, void* stream) {
  if (a.count == 0) return;  // a grid of zero blocks is an error
  wide ? run<double>(a, stream) : run<float>(a, stream);
}

}  // namespace fundad::cuda
