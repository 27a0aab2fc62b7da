// SPDX-License-Identifier: Apache-2.0
// Exact greedy k-centre, as lazy as it can be.
//
// The rows are sorted into leaves of a kd-tree. Each leaf remembers the distance of its farthest
// row as it was when the leaf was last looked at. Later picks can only lower it, so it is an upper
// bound. The leaf with the largest bound is taken from a heap: if it has seen all picks, its
// farthest row is the next pick; if not, the picks it has missed are applied to it, nearest first,
// and it goes back. Most leaves are looked at seldom, and then most of the missed picks are shown
// to be too far away by the leaf's ball or by the short picture of the rows.
#include "fundad/kcenter.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "aligned.h"
#include "crew.h"
#include "kdtree.h"
#include "kernels.h"

namespace fundad::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kNowhere = 1e15f;  // coordinate of a row that fills up a leaf: far from everything

// Aligned memory that nobody has written to: to set it would take one thread longer than all
// threads take to fill it.
class UnsetArray {
 public:
  explicit UnsetArray(std::size_t n) : n_(n), data_(CacheAligned<float>().allocate(n)) {}
  ~UnsetArray() { CacheAligned<float>().deallocate(data_, n_); }
  UnsetArray(const UnsetArray&) = delete;
  UnsetArray& operator=(const UnsetArray&) = delete;
  float* data() { return data_; }
  const float* data() const { return data_; }

 private:
  std::size_t n_;
  float* data_;
};

}  // namespace

struct KCenter::Search {
  const KCenterInput input;
  const Kernels& kernels;
  const std::int64_t leaves, width;

  // Per slot, per leaf, per pick: see KCenterView.
  UnsetArray z;  // first written by the threads that fill the leaves
  AlignedVector<float> limit2, center, ball, pick_z, pick_row_z;
  std::vector<std::int64_t> row, top_slot, picks, slot_of_row;
  std::vector<double> reach2, top2;

  std::vector<std::int64_t> seen;  // [leaves] how many picks each leaf has met
  std::vector<std::int64_t> heap;  // leaves, the one with the farthest row on top
  std::vector<std::vector<Near>> scratch;
  KCenterView view;

  Search(const KCenterInput& in, Isa isa, int threads)
      : input(in),
        kernels(fundad::cpu::kernels(isa)),
        leaves((in.n + kLeafRows - 1) / kLeafRows),
        width(in.p + 1),
        z(leaves * width * kLeafRows),
        limit2(leaves * kLeafRows, -1.f),
        center(leaves * width),
        ball(leaves),
        row(leaves * kLeafRows, in.n),
        top_slot(leaves),
        slot_of_row(in.n),
        reach2(leaves * kLeafRows, -1.),
        top2(leaves, kInfinity),
        seen(leaves, 0),
        heap(leaves) {
    const auto order =
        kdtree_order(in.z, in.n, width, std::min<std::int64_t>(24, in.p), kLeafRows, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (std::int64_t leaf = 0; leaf < leaves; ++leaf) fill(leaf, order);
    for (std::int64_t leaf = 0; leaf < leaves; ++leaf) heap[leaf] = leaf;
    refresh_view();
  }

  void fill(std::int64_t leaf, const std::vector<std::int64_t>& order) {
    const std::int64_t first = leaf * kLeafRows, rows = std::min(kLeafRows, input.n - first);
    float* leaf_z = z.data() + leaf * width * kLeafRows;
    if (rows < kLeafRows) std::fill_n(leaf_z, width * kLeafRows, kNowhere);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t i = order[first + r];
      row[first + r] = i;
      slot_of_row[i] = first + r;
      reach2[first + r] = kInfinity;
      limit2[first + r] = std::numeric_limits<float>::infinity();
      for (std::int64_t c = 0; c < width; ++c) leaf_z[c * kLeafRows + r] = input.z[i * width + c];
    }
    std::vector<double> dist2(rows);
    for (std::int64_t c = 0; c < width; ++c) {
      const float* column = leaf_z + c * kLeafRows;
      double sum = 0;
      for (std::int64_t r = 0; r < rows; ++r) sum += column[r];
      const float mean = center[leaf * width + c] = static_cast<float>(sum / rows);
      for (std::int64_t r = 0; r < rows; ++r) {
        const double t = static_cast<double>(column[r]) - mean;
        dist2[r] += t * t;
      }
    }
    const double radius = std::sqrt(*std::max_element(dist2.begin(), dist2.end()));
    ball[leaf] = static_cast<float>(radius * (1 + 1e-6));
    top_slot[leaf] = first;
  }

  void refresh_view() {
    view = {input.x,         input.d,       input.p,       input.scale,
            input.slack,     z.data(),      center.data(), ball.data(),
            row.data(),      reach2.data(), limit2.data(), top2.data(),
            top_slot.data(), pick_z.data(), picks.data(),  pick_row_z.data()};
  }

  void add_pick(std::int64_t slot) {
    const auto number = static_cast<std::int64_t>(picks.size());
    if (number % kPickBlock == 0) pick_z.resize(pick_z.size() + width * kPickBlock, kNowhere);
    float* to = pick_z.data() + number / kPickBlock * width * kPickBlock + number % kPickBlock;
    const float* from = z.data() + slot / kLeafRows * width * kLeafRows + slot % kLeafRows;
    for (std::int64_t c = 0; c < width; ++c) {
      to[c * kPickBlock] = from[c * kLeafRows];
      pick_row_z.push_back(from[c * kLeafRows]);
    }
    picks.push_back(row[slot]);
    reach2[slot] = -1;  // below every distance: never picked again, also among duplicates
    limit2[slot] = -1;
    refresh_view();
  }

  void meet_new_picks(std::int64_t leaf, int worker) {
    std::vector<Near>& near = scratch[worker];
    const std::int64_t from = seen[leaf], to = static_cast<std::int64_t>(picks.size());
    near.resize(std::max<std::size_t>(near.size(), to - from));
    std::int64_t count = 0;
    if (top2[leaf] > 0) count = kernels.kcenter_candidates(view, leaf, from, to, near.data());
    std::sort(near.begin(), near.begin() + count,
              [](const Near& a, const Near& b) { return a.dist2 < b.dist2; });
    kernels.kcenter_apply(view, leaf, near.data(), count);
    seen[leaf] = to;
  }

  // Runs job(share), where share(leaves) brings leaves up to date.
  template <class Job>
  void with_crew(int threads, const Job& job) {
    scratch.resize(std::max<std::size_t>(scratch.size(), threads));
    Crew::run(threads, [&](std::int64_t leaf, int worker) { meet_new_picks(leaf, worker); }, job);
  }

  bool is_stale(std::int64_t leaf) const {
    return seen[leaf] < static_cast<std::int64_t>(picks.size());
  }

  // Heap order: the farther top, then the lower row. A stale top can only fall, or stay and pass to
  // a higher row, so a leaf on top that has seen every pick is right about the next one.
  bool under(std::int64_t a, std::int64_t b) const {
    return top2[a] < top2[b] || (top2[a] == top2[b] && row[top_slot[a]] > row[top_slot[b]]);
  }

  void bring_all_up_to_date(int threads) {
    std::vector<std::int64_t> stale;
    for (std::int64_t leaf = 0; leaf < leaves; ++leaf)
      if (is_stale(leaf)) stale.push_back(leaf);
    with_crew(threads, [&](const auto& share) { share(stale); });
    std::make_heap(heap.begin(), heap.end(), [&](auto a, auto b) { return under(a, b); });
  }

  void advance(std::int64_t k, int threads) {
    with_crew(threads, [&](const auto& share) { advance(k, threads, share); });
  }

  template <class Share>
  void advance(std::int64_t k, int threads, const Share& share) {
    // Stale leaves refreshed at a time: more is more for the threads to share, but some of it would
    // not have been needed (1 costs 59,000 refreshes where 16 cost 252,000, in the same time).
    const std::size_t batch = threads == 1 ? 1 : std::min(8 * threads, 64);
    const auto less = [&](std::int64_t a, std::int64_t b) { return under(a, b); };
    std::vector<std::int64_t> popped, stale;
    while (static_cast<std::int64_t>(picks.size()) < k) {
      if (!is_stale(heap.front())) {
        add_pick(top_slot[heap.front()]);
        continue;
      }
      popped.clear();
      stale.clear();
      while (stale.size() < batch && popped.size() < 4 * batch && !heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), less);
        popped.push_back(heap.back());
        heap.pop_back();
        if (is_stale(popped.back())) stale.push_back(popped.back());
      }
      share(stale);
      for (const std::int64_t leaf : popped) {
        heap.push_back(leaf);
        std::push_heap(heap.begin(), heap.end(), less);
      }
    }
  }
};

KCenter::KCenter(const KCenterInput& input, const std::int64_t* picks, std::int64_t count, Isa isa,
                 int threads)
    : search_(std::make_unique<Search>(input, isa, threads)) {
  for (std::int64_t i = 0; i < count; ++i) search_->add_pick(search_->slot_of_row[picks[i]]);
  search_->bring_all_up_to_date(threads);
}

KCenter::~KCenter() = default;

void KCenter::advance(std::int64_t k, int threads) { search_->advance(k, threads); }

void KCenter::radius2(float* radius2, int threads) {
  search_->bring_all_up_to_date(threads);
  for (std::int64_t i = 0; i < search_->input.n; ++i)
    radius2[i] = static_cast<float>(std::max(0., search_->reach2[search_->slot_of_row[i]]));
}

const std::vector<std::int64_t>& KCenter::picks() const { return search_->picks; }

}  // namespace fundad::cpu
