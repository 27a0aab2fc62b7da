// SPDX-License-Identifier: Apache-2.0
// A leaf of the k-centre tree meets the picks that it has not seen yet.
#pragma once
#include "kernels.h"
#include "sqdist-inl.h"

namespace {

using fundad::cpu::KCenterView;
using fundad::cpu::kLeafRows;
using fundad::cpu::kPickBlock;
using fundad::cpu::Near;

// A squared distance in the short picture that proves a true squared distance of at least reach2
// from a point no more than `ball` away. The last factor covers the float32 sums of up to 129
// squares; it and the rounding of the result err on the side of a needless look.
inline float proof2(const KCenterView& v, double reach2, double ball) {
  const double r = __builtin_sqrt(reach2) / v.scale + v.slack + ball;
  return static_cast<float>(r * r * (1 + 2e-5));
}

inline std::int64_t kcenter_candidates(const KCenterView& v, std::int64_t leaf, std::int64_t from,
                                       std::int64_t to, Near* out) {
  constexpr int kGroups = kPickBlock / kLanes;
  const float* center = v.center + leaf * (v.p + 1);
  const Floats limit = spread(proof2(v, v.top2[leaf], v.ball[leaf]));
  std::int64_t count = 0;
  for (std::int64_t block = from / kPickBlock; block * kPickBlock < to; ++block) {
    const float* z = v.pick_z + block * (v.p + 1) * kPickBlock;
    Floats sum[kGroups] = {};
    const auto add = [&](std::int64_t coordinate) {
      const Floats c = spread(center[coordinate]);
      for (int g = 0; g < kGroups; ++g) {
        const Floats t = load(z + coordinate * kPickBlock + g * kLanes) - c;
        sum[g] = fma(t, t, sum[g]);
      }
    };
    const auto alive = [&] {
      std::uint64_t bits = 0;
      for (int g = 0; g < kGroups; ++g) bits |= not_reaching(sum[g], limit) << (g * kLanes);
      return bits;
    };
    std::uint64_t bits = ~std::uint64_t{0};
    for (std::int64_t i = 0; i < v.p && bits; i += 8) {
      for (int j = 0; j < 8; ++j) add(i + j);
      bits = alive();
    }
    if (!bits) continue;
    add(v.p);
    float dist2[kPickBlock];
    for (int g = 0; g < kGroups; ++g) store(dist2 + g * kLanes, sum[g]);
    for (bits = alive(); bits; bits &= bits - 1) {
      const int lane = __builtin_ctzll(bits);
      const std::int64_t pick = block * kPickBlock + lane;
      if (from <= pick && pick < to) out[count++] = {dist2[lane], static_cast<std::int32_t>(pick)};
    }
  }
  return count;
}

// The rows of a leaf, one bit each, that the short picture cannot prove to be untouched by a pick.
inline std::uint64_t kcenter_unproved(const KCenterView& v, std::int64_t leaf, std::int64_t pick) {
  constexpr int kGroups = 4, kPart = kGroups * kLanes;  // what registers hold
  const float* pick_z = v.pick_row_z + pick * (v.p + 1);
  std::uint64_t found = 0;
  for (int part = 0; part < kLeafRows; part += kPart) {
    const float* z = v.z + leaf * (v.p + 1) * kLeafRows + part;
    const float* limit2 = v.limit2 + leaf * kLeafRows + part;
    Floats sum[2][kGroups] = {};  // of every other coordinate: one would wait for itself
    const auto add = [&](std::int64_t coordinate, int half) {
      const Floats w = spread(pick_z[coordinate]);
      for (int g = 0; g < kGroups; ++g) {
        const Floats t = load(z + coordinate * kLeafRows + g * kLanes) - w;
        sum[half][g] = fma(t, t, sum[half][g]);
      }
    };
    const auto unproved = [&] {
      std::uint64_t bits = 0;
      for (int g = 0; g < kGroups; ++g)
        bits |= not_reaching(sum[0][g] + sum[1][g], load(limit2 + g * kLanes)) << (g * kLanes);
      return bits;
    };
    std::uint64_t bits = 1;
    for (std::int64_t i = 0; i < v.p && bits; i += 8) {
      for (int j = 0; j < 8; ++j) add(i + j, j % 2);
      bits = unproved();
    }
    if (!bits) continue;
    add(v.p, 0);
    found |= unproved() << part;
  }
  return found;
}

// What sqdist must reach, in float32, to prove that in float64 it is at least reach2. Sums of
// squares err by no more than a rounding for each of their steps; NaN, which nothing reaches, where
// reach2 is so small or so large that squares are not numbers of full precision.
inline float rough_limit(double reach2, std::int64_t d) {
  if (!(reach2 > 1e-30 && reach2 < 1e38)) return __builtin_nanf("");
  return static_cast<float>(reach2 * (1 + static_cast<double>(d / 16 + 64) * 0x1p-23));
}

inline void kcenter_find_top(const KCenterView& v, std::int64_t leaf) {
  const std::int64_t first = leaf * kLeafRows;
  std::int64_t top = first;
  for (std::int64_t s = first + 1; s < first + kLeafRows; ++s) {
    const double a = v.reach2[s], b = v.reach2[top];
    if (a > b || (a == b && v.row[s] < v.row[top])) top = s;
  }
  v.top_slot[leaf] = top;
  v.top2[leaf] = v.reach2[top];
}

inline double kcenter_top2(const KCenterView& v, std::int64_t leaf) {
  double top2 = -1;
  for (std::int64_t s = leaf * kLeafRows; s < (leaf + 1) * kLeafRows; ++s)
    top2 = v.reach2[s] > top2 ? v.reach2[s] : top2;
  return top2;
}

inline void kcenter_apply(const KCenterView& v, std::int64_t leaf, const Near* sorted,
                          std::int64_t count) {
  const std::int64_t first = leaf * kLeafRows;
  const auto proof = [&](double top2) { return top2 > 0 ? proof2(v, top2, v.ball[leaf]) : -1; };
  double top2 = kcenter_top2(v, leaf);
  float limit2 = proof(top2);
  for (const Near* near = sorted; near < sorted + count && !(near->dist2 >= limit2); ++near) {
    const float* pick = v.x + v.pick_row[near->pick] * v.d;
    bool lowered_top = false;
    for (std::uint64_t bits = kcenter_unproved(v, leaf, near->pick); bits; bits &= bits - 1) {
      const std::int64_t s = first + __builtin_ctzll(bits);
      if (const std::uint64_t later = bits & (bits - 1))
        fetch(v.x + v.row[first + __builtin_ctzll(later)] * v.d, v.d);
      const float* row = v.x + v.row[s] * v.d;
      const double before = v.reach2[s];
      // Four of five rows that are left turn out not to be lowered, which float32 can tell, too.
      if (rough_sqdist(row, pick, v.d) >= rough_limit(before, v.d)) continue;
      const double dist2 = sqdist(row, pick, v.d);
      if (dist2 >= before) continue;
      v.reach2[s] = dist2;
      v.limit2[s] = dist2 > 0 ? proof2(v, dist2, 0) : -1;  // nothing is nearer than zero
      lowered_top |= before == top2;
    }
    if (lowered_top) limit2 = proof(top2 = kcenter_top2(v, leaf));
  }
  kcenter_find_top(v, leaf);
}

}  // namespace
