// SPDX-License-Identifier: Apache-2.0
#include "fundad/clean_labels.h"

#include <algorithm>
#include <cstring>
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

// Cells [lo, hi) of a line along the last axis, all of them in the mask.
struct Run {
  std::int64_t z, y, lo, hi, part;
};

// Runs of a mask, line by line; `lines` has the first run of each line, and an end.
std::vector<Run> runs_of(const bool* mask, const Extent& e, std::vector<std::int64_t>& lines) {
  std::vector<Run> runs;
  lines.clear();
  for (std::int64_t z = 0; z < e.n[0]; ++z)
    for (std::int64_t y = 0; y < e.n[1]; ++y) {
      lines.push_back(static_cast<std::int64_t>(runs.size()));
      const bool *line = mask + (z * e.n[1] + y) * e.n[2], *end = line + e.n[2];
      for (const bool* at = line; at < end;) {
        const void* first = std::memchr(at, 1, end - at);
        if (first == nullptr) break;
        const bool* lo = static_cast<const bool*>(first);
        const void* after = std::memchr(lo, 0, end - lo);
        at = after == nullptr ? end : static_cast<const bool*>(after);
        runs.push_back({z, y, lo - line, at - line, static_cast<std::int64_t>(runs.size())});
      }
    }
  lines.push_back(static_cast<std::int64_t>(runs.size()));
  return runs;
}

// The first run of the part that a run belongs to.
std::int64_t first_of(std::vector<Run>& runs, std::int64_t i) {
  while (runs[i].part != i) i = runs[i].part = runs[runs[i].part].part;
  return i;
}

// Joins the runs of two lines that lie side by side.
void join(std::vector<Run>& runs, std::int64_t a, std::int64_t a_end, std::int64_t b,
          std::int64_t b_end) {
  while (a < a_end && b < b_end) {
    if (runs[a].lo < runs[b].hi && runs[b].lo < runs[a].hi) {
      const std::int64_t one = first_of(runs, a), other = first_of(runs, b);
      runs[std::max(one, other)].part = std::min(one, other);
    }
    if (runs[a].hi < runs[b].hi) {
      ++a;
    } else {
      ++b;
    }
  }
}

// Bounding boxes of face-connected parts, in the order of their first cells.
std::vector<Bounds> parts_of(const bool* mask, const Extent& e) {
  std::vector<std::int64_t> lines;
  std::vector<Run> runs = runs_of(mask, e, lines);
  for (std::int64_t z = 0; z < e.n[0]; ++z)
    for (std::int64_t y = 0; y < e.n[1]; ++y) {
      const std::int64_t* line = lines.data() + z * e.n[1] + y;
      const std::int64_t back = e.n[1];
      if (y > 0) join(runs, line[-1], line[0], line[0], line[1]);
      if (z > 0) join(runs, line[-back], line[1 - back], line[0], line[1]);
    }
  std::vector<Bounds> found;
  std::vector<std::int64_t> number(runs.size());
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const Run& run = runs[i];
    const std::int64_t first = first_of(runs, static_cast<std::int64_t>(i));
    const Bounds own{{run.z, run.y, run.lo}, {run.z + 1, run.y + 1, run.hi}};
    if (first == static_cast<std::int64_t>(i)) {
      number[i] = static_cast<std::int64_t>(found.size());
      found.push_back(own);
      continue;
    }
    Bounds& all = found[number[first]];
    for (int axis = 0; axis < 3; ++axis) {
      all.lo[axis] = std::min(all.lo[axis], own.lo[axis]);
      all.hi[axis] = std::max(all.hi[axis], own.hi[axis]);
    }
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
      fill<9>(e);
    } else {
      fill<4>(e);
    }
    take_back(values, e);
  }

 private:
  std::int64_t wide_[3];
  std::vector<float> floor_, level_;  // what is there, and to what it is raised
  std::vector<std::int64_t> queue_;

  // The neighbours that come before a cell in the order of memory, kHalf of them, of which the last
  // one is beside it; as many come after it. Cells of the layer around have an infinite floor: they
  // are never lowered.
  template <int kHalf>
  void fill(const Extent& e) {
    std::int64_t earlier[kHalf];
    int count = 0;
    for (std::int64_t z = kHalf == 9 ? -1 : 0; z <= 0; ++z)
      for (std::int64_t y = -1; y <= 1; ++y)
        for (std::int64_t x = -1; x <= 1; ++x) {
          const std::int64_t offset = (z * wide_[1] + y) * wide_[2] + x;
          if (offset < 0 && z * z + y * y + x * x <= 2) earlier[count++] = offset;
        }
    const std::int64_t n = e.n[2], lines = e.n[0] * e.n[1];
    float* level = level_.data();
    const float* floor = floor_.data();
    const auto first_of_line = [&](std::int64_t i) {
      return ((i / e.n[1] + 1) * wide_[1] + i % e.n[1] + 1) * wide_[2] + 1;
    };
    for (std::int64_t i = 0; i < lines; ++i) {
      const std::int64_t line = first_of_line(i);
      lower<kHalf>(level + line, earlier, 1, n);
      float least = kInfinity;
      for (std::int64_t p = line; p < line + n; ++p)
        level[p] = least = Larger()(floor[p], Smaller()(least, level[p]));
    }
    queue_.clear();
    for (std::int64_t i = lines - 1; i >= 0; --i) {
      const std::int64_t line = first_of_line(i);
      lower<kHalf>(level + line, earlier, -1, n);
      float least = kInfinity;
      for (std::int64_t p = line + n - 1; p >= line; --p)
        level[p] = least = Larger()(floor[p], Smaller()(least, level[p]));
      if (!any_higher<kHalf>(level + line, floor + line, earlier, n)) continue;
      for (std::int64_t p = line + n - 1; p >= line; --p)
        if (any_higher<kHalf>(level + p, floor + p, earlier, 1)) queue_.push_back(p);
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

  // Lowers n cells to the least of their neighbours in other lines, before (way 1) or after them.
  // A cell waits for the one beside it, but not for these.
  template <int kHalf>
  static void lower(float* line, const std::int64_t* earlier, std::int64_t way, std::int64_t n) {
    for (int k = 0; k < kHalf - 1; ++k) {
      const float* other = line + way * earlier[k];
#pragma GCC ivdep
      for (std::int64_t x = 0; x < n; ++x) line[x] = Smaller()(line[x], other[x]);
    }
  }

  // Whether a neighbour after one of n cells can still be lowered to it.
  template <int kHalf>
  static bool any_higher(const float* level, const float* floor, const std::int64_t* earlier,
                         std::int64_t n) {
    int found = 0;
    for (int k = 0; k < kHalf; ++k) {
      const float *other = level - earlier[k], *under = floor - earlier[k];
      for (std::int64_t x = 0; x < n; ++x) found |= (other[x] > level[x]) & (other[x] > under[x]);
    }
    return found != 0;
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
