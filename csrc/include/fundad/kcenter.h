// SPDX-License-Identifier: Apache-2.0
// Greedy k-centre: rows that leave no row far away.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "fundad/isa.h"

namespace fundad::cpu {

// Fewer coordinates of the rows of x [n,d]: their projection on orthonormal axes, and the norm of
// what is left. By the triangle inequality two such norms differ by no more than the rests are
// apart, so distances may shrink but not grow.
//
// center [d]; axes [d,p], orthonormal columns (or zero ones) divided by `scale`, p % 32 == 0
// -> z [n,p+1] in units of `scale`. Computed in float64, then rounded.
struct PictureArgs {
  const float* x;
  std::int64_t n, d;
  const double* center;
  const double* axes;
  std::int64_t p;
  double scale;
  float* z;
};

// Returns the largest |z_i|.
double short_picture(const PictureArgs& args, Isa isa, int threads);

// x [n,d], row-major, finite.
//
// z [n,p+1], row-major, is a short picture of x:
//   |z_i - z_j| <= |x_i - x_j| / scale + slack   for all i, j;   |z_i| about 1 at most; p % 8 == 0.
// It decides only what is skipped. Every distance that decides a pick is taken between rows of x,
// in float64 and in one order of summation, so the picks do not depend on z, the instruction set or
// the number of threads.
struct KCenterInput {
  const float* x;
  std::int64_t n, d;
  const float* z;
  std::int64_t p;
  double scale;
  double slack;
};

// Each next pick is the row farthest from all picks before it: the lowest row among equals, and
// never a row that was picked already.
class KCenter {
 public:
  // Copies z; x must stay as it is while this object lives. `picks` [count >= 1] come first.
  KCenter(const KCenterInput& input, const std::int64_t* picks, std::int64_t count, Isa isa,
          int threads);
  ~KCenter();
  KCenter(const KCenter&) = delete;
  KCenter& operator=(const KCenter&) = delete;

  // Picks on until there are k <= n of them.
  void advance(std::int64_t k, int threads);

  // radius2 [n]: the squared distance of each row to its nearest pick, rounded to float32.
  void radius2(float* radius2, int threads);

  const std::vector<std::int64_t>& picks() const;

 private:
  struct Search;
  std::unique_ptr<Search> search_;
};

}  // namespace fundad::cpu
