// SPDX-License-Identifier: Apache-2.0
#include "fundad/clean_labels.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace fundad::cpu {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Three axes; those that are missing come first, and have one cell.
struct Extent {
  std::int64_t n[3];
  int missing;

  std::int64_t cells() const { return n[0] * n[1] * n[2]; }
};

// The bounding box of a part: first cells, and those after the last ones.
struct Bounds {
  std::int64_t lo[3], hi[3];
};

Extent extent_of(const LabelBox& box) {
  Extent e{{1, 1, 1}, static_cast<int>(3 - box.axes)};
  for (int axis = e.missing; axis < 3; ++axis) e.n[axis] = box.size[axis - e.missing];
  return e;
}

struct Cell {
  std::int64_t at[3];
};

// Bounding boxes of face-connected parts, in the order of their first cells.
std::vector<Bounds> parts_of(const bool* mask, const Extent& e) {
  std::vector<unsigned char> left(mask, mask + e.cells());
  std::vector<Cell> stack;
  std::vector<Bounds> found;
  const std::int64_t step[3] = {e.n[1] * e.n[2], e.n[2], 1};
  const auto take = [&](const Cell& c) {
    left[c.at[0] * step[0] + c.at[1] * step[1] + c.at[2]] = 0;
    stack.push_back(c);
  };
  for (std::int64_t z = 0; z < e.n[0]; ++z)
    for (std::int64_t y = 0; y < e.n[1]; ++y)
      for (std::int64_t x = 0; x < e.n[2]; ++x) {
        if (!left[z * step[0] + y * step[1] + x]) continue;
        Bounds b{{e.n[0], e.n[1], e.n[2]}, {0, 0, 0}};
        take({{z, y, x}});
        while (!stack.empty()) {
          const Cell c = stack.back();
          stack.pop_back();
          const std::int64_t now = c.at[0] * step[0] + c.at[1] * step[1] + c.at[2];
          for (int axis = 0; axis < 3; ++axis) {
            b.lo[axis] = std::min(b.lo[axis], c.at[axis]);
            b.hi[axis] = std::max(b.hi[axis], c.at[axis] + 1);
            for (const int way : {-1, 1}) {
              Cell next = c;
              next.at[axis] += way;
              if (next.at[axis] < 0 || next.at[axis] >= e.n[axis]) continue;
              if (left[now + way * step[axis]]) take(next);
            }
          }
        }
        found.push_back(b);
      }
  return found;
}

struct Larger {
  float operator()(float a, float b) const { return a < b ? b : a; }
};
struct Smaller {
  float operator()(float a, float b) const { return b < a ? b : a; }
};

// The extreme of up to three cells along an axis; what lies beyond does not count.
template <class Extreme>
void over_line(const float* in, float* out, const Extent& e, int axis, Extreme extreme) {
  std::int64_t inner = 1;
  for (int a = axis + 1; a < 3; ++a) inner *= e.n[a];
  const std::int64_t n = e.n[axis], lanes = e.cells() / (n * inner);
  for (std::int64_t lane = 0; lane < lanes; ++lane) {
    const float* from = in + lane * n * inner;
    float* to = out + lane * n * inner;
    const std::int64_t end = n * inner;
    if (n == 1) {
      std::copy(from, from + end, to);
      continue;
    }
    for (std::int64_t j = 0; j < inner; ++j) to[j] = extreme(from[j], from[j + inner]);
    for (std::int64_t j = inner; j < end - inner; ++j)
      to[j] = extreme(extreme(from[j - inner], from[j]), from[j + inner]);
    for (std::int64_t j = end - inner; j < end; ++j) to[j] = extreme(from[j - inner], from[j]);
  }
}

// The extreme over the squares of 3 x 3 cells of all planes through a cell, in place.
template <class Extreme>
void over_squares(float* values, std::vector<float>& scratch, const Extent& e, Extreme extreme) {
  const std::int64_t cells = e.cells();
  scratch.resize(3 * cells);
  float *line = scratch.data(), *other = line + cells, *square = other + cells;
  over_line(values, line, e, 2, extreme);
  over_line(line, square, e, 1, extreme);
  if (e.n[0] > 1) {
    over_line(line, other, e, 0, extreme);
    for (std::int64_t i = 0; i < cells; ++i) square[i] = extreme(square[i], other[i]);
    over_line(values, line, e, 1, extreme);
    over_line(line, other, e, 0, extreme);
    for (std::int64_t i = 0; i < cells; ++i) square[i] = extreme(square[i], other[i]);
  }
  std::copy(square, square + cells, values);
}

// Fills a box with a layer of cells around it that nothing can come through. Vincent's hybrid way:
// two scans, then a queue for what they did not reach.
class Filling {
 public:
  void run(float* values, const Extent& e) {
    lay_out(values, e);
    if (e.n[0] > 1) {
      fill<9>();
    } else {
      fill<4>();
    }
    take_back(values, e);
  }

 private:
  std::int64_t wide_[3];
  std::vector<float> floor_, level_;  // what is there, and to what it is raised
  std::vector<std::int64_t> queue_;

  // The neighbours that come before a cell in the order of memory, kHalf of them; as many come
  // after it. Cells of the layer around have an infinite floor: they are never lowered.
  template <int kHalf>
  void fill() {
    std::int64_t earlier[kHalf];
    int count = 0;
    for (std::int64_t z = kHalf == 9 ? -1 : 0; z <= 0; ++z)
      for (std::int64_t y = -1; y <= 1; ++y)
        for (std::int64_t x = -1; x <= 1; ++x) {
          const std::int64_t offset = (z * wide_[1] + y) * wide_[2] + x;
          if (offset < 0 && z * z + y * y + x * x <= 2) earlier[count++] = offset;
        }
    float* level = level_.data();
    const float* floor = floor_.data();
    const std::int64_t first = (wide_[1] + 1) * wide_[2] + 1;
    const std::int64_t end = static_cast<std::int64_t>(level_.size()) - first;
    for (std::int64_t p = first; p < end; ++p) {
      float least = level[p];
      for (const std::int64_t offset : earlier) least = Smaller()(least, level[p + offset]);
      level[p] = Larger()(least, floor[p]);
    }
    queue_.clear();
    for (std::int64_t p = end - 1; p >= first; --p) {
      float least = level[p];
      for (const std::int64_t offset : earlier) least = Smaller()(least, level[p - offset]);
      level[p] = least = Larger()(least, floor[p]);
      bool higher = false;
      for (const std::int64_t offset : earlier)
        higher |= level[p - offset] > least && level[p - offset] > floor[p - offset];
      if (higher) queue_.push_back(p);
    }
    for (std::size_t head = 0; head < queue_.size(); ++head) {
      const std::int64_t p = queue_[head];
      for (const std::int64_t offset : earlier)
        for (const std::int64_t q : {p + offset, p - offset})
          if (level[q] > level[p] && level[q] > floor[q]) {
            level[q] = Larger()(level[p], floor[q]);
            queue_.push_back(q);
          }
    }
  }

  template <class Row>
  void rows(const Extent& e, Row row) {
    for (std::int64_t z = 0; z < e.n[0]; ++z)
      for (std::int64_t y = 0; y < e.n[1]; ++y)
        row(z, y, (z * e.n[1] + y) * e.n[2], ((z + 1) * wide_[1] + y + 1) * wide_[2] + 1);
  }

  void lay_out(const float* values, const Extent& e) {
    for (int axis = 0; axis < 3; ++axis) wide_[axis] = e.n[axis] + 2;
    floor_.assign(wide_[0] * wide_[1] * wide_[2], kInfinity);
    level_.assign(floor_.size(), kInfinity);
    const bool deep = e.missing < 1, tall = e.missing < 2;
    rows(e, [&](std::int64_t z, std::int64_t y, std::int64_t from, std::int64_t to) {
      std::copy(values + from, values + from + e.n[2], floor_.data() + to);
      const bool face =
          (deep && (z == 0 || z == e.n[0] - 1)) || (tall && (y == 0 || y == e.n[1] - 1));
      if (face) {
        std::copy(values + from, values + from + e.n[2], level_.data() + to);
      } else {
        level_[to] = values[from];
        level_[to + e.n[2] - 1] = values[from + e.n[2] - 1];
      }
    });
  }

  void take_back(float* values, const Extent& e) {
    rows(e, [&](std::int64_t, std::int64_t, std::int64_t to, std::int64_t from) {
      std::copy(level_.data() + from, level_.data() + from + e.n[2], values + to);
    });
  }
};

void clean(const LabelBox& box) {
  const Extent whole = extent_of(box);
  std::copy(box.values, box.values + whole.cells(), box.out);
  std::vector<float> part, scratch;
  Filling filling;
  for (const Bounds& b : parts_of(box.mask, whole)) {
    Extent e{{}, whole.missing};
    for (int axis = 0; axis < 3; ++axis) e.n[axis] = b.hi[axis] - b.lo[axis];
    part.resize(e.cells());
    const auto rows = [&](auto row) {
      for (std::int64_t z = 0; z < e.n[0]; ++z)
        for (std::int64_t y = 0; y < e.n[1]; ++y)
          row(box.out + ((b.lo[0] + z) * whole.n[1] + b.lo[1] + y) * whole.n[2] + b.lo[2],
              part.data() + (z * e.n[1] + y) * e.n[2]);
    };
    rows([&](const float* from, float* to) { std::copy(from, from + e.n[2], to); });
    over_squares(part.data(), scratch, e, Larger{});
    over_squares(part.data(), scratch, e, Smaller{});
    filling.run(part.data(), e);
    rows([&](float* to, const float* from) { std::copy(from, from + e.n[2], to); });
  }
}

}  // namespace

void clean_labels(const LabelBox* boxes, std::int64_t count, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < count; ++i) clean(boxes[i]);
}

}  // namespace fundad::cpu
