// SPDX-License-Identifier: Apache-2.0
#include "fundad/poisson_blend.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "crew.h"
#include "kernels.h"

namespace fundad::cpu {

namespace {

constexpr double kPi = 3.14159265358979323846;

// From this many multiplications on a box may be shared by threads: less is done before a helper
// is awake.
constexpr double kShared = 2e6;

PoissonView view(const PoissonBox& box) {
  PoissonView v{};
  v.target = box.target;
  v.source = box.source;
  v.mask = box.mask;
  v.out = box.out;
  v.channels = box.channels;
  const bool middle = box.axes == 3;
  const std::int64_t last = box.axes - 1;
  v.n[0] = box.size[0] - 2;
  v.n[1] = middle ? box.size[1] - 2 : 1;
  v.n[2] = box.size[last] - 2;
  v.step[0] = middle ? box.size[1] * box.size[2] : box.size[last];
  v.step[1] = middle ? box.size[2] : 0;
  v.step[2] = 1;
  v.channel_cells = box.size[0] * v.step[0];
  v.sines[0] = box.sines[0];
  v.sines[1] = middle ? box.sines[1] : nullptr;
  v.sines[2] = box.sines[last];
  v.row_floats = sines_row((v.n[2] + 1) / 2) + sines_row(v.n[2] / 2);
  v.group_rows = middle ? v.n[1] : kSinesRows;
  return v;
}

std::int64_t work_floats(const PoissonView& v) {
  return v.channels * v.n[0] * v.n[1] * v.row_floats;
}

std::int64_t worker_floats(const PoissonView& v) {
  const std::int64_t columns = 2 * kSinesPanel * std::max(v.n[0], v.n[1]);
  return sines_row(std::max(columns, (2 * kSinesRows + 2) * v.row_floats));
}

double cost(const PoissonBox& box) {
  double cells = static_cast<double>(box.channels), sum = 0;
  for (std::int64_t axis = 0; axis < box.axes; ++axis) {
    cells *= static_cast<double>(box.size[axis]);
    sum += static_cast<double>(box.size[axis]);
  }
  return cells * (box.axes == 1 ? 1 : sum);
}

// Which boxes are shared by all workers, one after the other, and which are one worker's each.
struct Plan {
  std::vector<std::int64_t> shared, single;
  std::int64_t shared_floats = 0;  // of a box that is shared
  std::int64_t worker_floats = 0;  // of a worker's scratch
  std::int64_t single_floats = 0;  // of a worker's box

  Plan(const PoissonBox* boxes, std::int64_t count, int threads) {
    std::vector<double> costs(count);
    for (std::int64_t i = 0; i < count; ++i) costs[i] = cost(boxes[i]);
    const double most = std::accumulate(costs.begin(), costs.end(), 0.0) / (2 * threads);
    for (std::int64_t i = 0; i < count; ++i) {
      const bool wide = threads > 1 && costs[i] > kShared && costs[i] > most && boxes[i].axes > 1;
      (wide ? shared : single).push_back(i);
      if (boxes[i].axes == 1) continue;
      const PoissonView v = view(boxes[i]);
      std::int64_t& floats = wide ? shared_floats : single_floats;
      floats = std::max(floats, work_floats(v));
      worker_floats = std::max(worker_floats, cpu::worker_floats(v));
    }
    // The crew begins with the last one.
    std::stable_sort(single.begin(), single.end(),
                     [&](std::int64_t a, std::int64_t b) { return costs[a] < costs[b]; });
  }

  std::int64_t floats(int threads) const {
    return shared_floats + threads * (worker_floats + single_floats);
  }
};

// One axis needs no transform: differences of the result are the wanted ones less a constant,
// which makes their sum zero.
void line(const PoissonBox& box) {
  const std::int64_t size = box.size[0];
  std::vector<double> gain(size - 1);
  for (std::int64_t channel = 0; channel < box.channels; ++channel) {
    const float* target = box.target + channel * size;
    const float* source = box.source + channel * size;
    float* out = box.out + channel * size;
    double mean = 0;
    for (std::int64_t i = 1; i < size - 1; ++i) {  // the difference at 0 starts on a face
      const double of_target = static_cast<double>(target[i + 1]) - target[i];
      const double of_source = static_cast<double>(source[i + 1]) - source[i];
      const bool wanted = box.mask[i] && std::fabs(of_source) > std::fabs(of_target);
      gain[i] = wanted ? of_source - of_target : 0;
      mean += gain[i];
    }
    mean /= static_cast<double>(size - 1);
    gain[0] = 0;
    double change = 0;
    for (std::int64_t i = 1; i < size - 1; ++i) {
      change += gain[i - 1] - mean;
      out[i] = static_cast<float>(target[i] + change);
    }
    out[0] = target[0];
    out[size - 1] = target[size - 1];
  }
}

std::int64_t groups(const PoissonView& v) {
  return (v.n[0] * v.n[1] + v.group_rows - 1) / v.group_rows;
}

std::int64_t panels(const PoissonView& v) { return (v.n[2] + kSinesPanel - 1) / kSinesPanel; }

enum class Step { begin, across, end };

void do_step(const Kernels& run, const PoissonView& v, Step step, std::int64_t item,
             float* scratch) {
  if (step == Step::across) {
    const std::int64_t channel = item / (v.n[1] * panels(v)), panel = item % panels(v);
    return run.poisson_across(v, channel, item / panels(v) % v.n[1], panel, scratch);
  }
  const auto group = step == Step::begin ? run.poisson_begin : run.poisson_end;
  group(v, item / groups(v), item % groups(v), scratch);
}

std::int64_t items(const PoissonView& v, Step step) {
  return v.channels * (step == Step::across ? v.n[1] * panels(v) : groups(v));
}

constexpr Step kSteps[] = {Step::begin, Step::across, Step::end};

}  // namespace

std::int64_t sines_floats(std::int64_t n) {
  const std::int64_t even = (n + 1) / 2, odd = n / 2;
  return 2 * (even * sines_row(even) + odd * sines_row(odd)) + sines_row(n);
}

void fill_sines(std::int64_t n, float* table) {
  const std::int64_t period = 2 * (n + 1);
  std::vector<double> sine(period);
  for (std::int64_t t = 0; t < period; ++t)
    sine[t] = std::sqrt(2.0 / (n + 1)) * std::sin(kPi * t / (n + 1));
  for (const std::int64_t first : {0, 1}) {
    const std::int64_t half = (n + 1 - first) / 2, row = sines_row(half);
    std::fill(table, table + 2 * half * row, 0.0f);
    float* transposed = table + half * row;
    for (std::int64_t i = 0; i < half; ++i)
      for (std::int64_t k = 0; k < half; ++k) {
        const double value = sine[(2 * i + first + 1) * (k + 1) % period];
        table[i * row + k] = transposed[k * row + i] = static_cast<float>(value);
      }
    table = transposed + half * row;
  }
  // What pads the eigenvalues must not divide by zero.
  std::fill(table, table + sines_row(n), -1.0f);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t place = i / 2 + (i % 2) * ((n + 1) / 2);
    const double half_sine = std::sin(kPi * (i + 1) / (2.0 * (n + 1)));
    table[place] = static_cast<float>(-4 * half_sine * half_sine);
  }
}

std::int64_t poisson_scratch(const PoissonBox* boxes, std::int64_t count, int threads) {
  return Plan(boxes, count, threads).floats(threads);
}

void poisson_blend(const PoissonBox* boxes, std::int64_t count, float* scratch, Isa isa,
                   int threads) {
  const Kernels& run = kernels(isa);
  const Plan plan(boxes, count, threads);
  PoissonView shared{};
  Step step{};
  bool alone = false;
  const auto work = [&](std::int64_t item, int worker) {
    float* own = scratch + plan.shared_floats + worker * (plan.worker_floats + plan.single_floats);
    if (!alone) return do_step(run, shared, step, item, own);
    const PoissonBox& box = boxes[item];
    if (box.axes == 1) return line(box);
    PoissonView v = view(box);
    v.work = own + plan.worker_floats;
    for (const Step each : kSteps)
      for (std::int64_t i = 0; i < items(v, each); ++i) do_step(run, v, each, i, own);
  };
  Crew::run(threads, work, [&](const auto& share) {
    std::vector<std::int64_t> numbers;
    for (const std::int64_t i : plan.shared) {
      shared = view(boxes[i]);
      shared.work = scratch;
      for (const Step each : kSteps) {
        step = each;
        numbers.resize(items(shared, each));
        std::iota(numbers.begin(), numbers.end(), 0);
        share(numbers);
      }
    }
    alone = true;
    share(plan.single);
  });
}

}  // namespace fundad::cpu
