// SPDX-License-Identifier: Apache-2.0
// The kernels as plain C functions that take the arguments of the native module's.
#include <cuda_runtime.h>

#include "fundad/kcenter_cuda.h"
#include "fundad/nearest_cuda.h"
#include "fundad/poisson_blend_cuda.h"

using Size = std::int64_t;
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

extern "C" Size exchanges() { return fibres::exchanges; }

extern "C" void kcenter_cuda(Address x, Address z, Address center, Address ball, Address row,
                             Address reach2, Address limit2, Address top2, Address top_slot,
                             Address tops, Address picks, Size d, Size p, Size leaves, double unit,
                             double slack, Size first, Size last, bool given, Address) {
  fundad::cuda::kcenter(
      {at<const float>(x), at<const float>(z), at<const float>(center), at<const float>(ball),
       at<const Size>(row), at<double>(reach2), at<float>(limit2), at<double>(top2),
       at<Size>(top_slot), at<fundad::cuda::KCenterTop>(tops), at<Size>(picks), d, p, leaves, unit,
       slack},
      first, last, given, nullptr);
}

extern "C" void nearest_cuda(Address q, Address bank, Address q_z, Address bank_z, Address half2,
                             Address q_norm2, Address reach, Address loss, double unit, Size m,
                             Size n, Size d, Size k, Size p, Size splits, Address seed_value,
                             Address seed_row, Address worst, Address found_dist2,
                             Address found_row, Address head, Address dist2, Address index,
                             Address) {
  fundad::cuda::nearest({at<const float>(q),
                         at<const float>(bank),
                         at<const std::uint16_t>(q_z),
                         at<const std::uint16_t>(bank_z),
                         at<const float>(half2),
                         at<const double>(q_norm2),
                         at<const double>(reach),
                         at<const double>(loss),
                         unit,
                         m,
                         n,
                         d,
                         k,
                         p,
                         splits,
                         at<float>(seed_value),
                         at<Size>(seed_row),
                         at<double>(worst),
                         at<double>(found_dist2),
                         at<Size>(found_row),
                         at<std::int32_t>(head),
                         at<float>(dist2),
                         at<Size>(index)},
                        nullptr);
}

extern "C" void poisson_blend_cuda(Address boxes, Size count, Address cells_inside, Address cells,
                                   Address tiles0, Address tiles1, Address tiles2,
                                   Size blocks_inside, Size blocks, Size blocks0, Size blocks1,
                                   Size blocks2, Address lengths, Address offsets, Size tables,
                                   Address table, Address work0, Address work1, bool wide,
                                   Address stream) {
  const fundad::cuda::PoissonArgs args{
      at<const fundad::cuda::PoissonBox>(boxes),
      count,
      {at<const Size>(cells_inside),
       at<const Size>(cells),
       {at<const Size>(tiles0), at<const Size>(tiles1), at<const Size>(tiles2)},
       {blocks_inside, blocks, blocks0, blocks1, blocks2}},
      at<const Size>(lengths),
      at<const Size>(offsets),
      tables,
      at<void>(table),
      {at<void>(work0), at<void>(work1)}};
  fundad::cuda::poisson_blend(args, wide, at<void>(stream));
}
