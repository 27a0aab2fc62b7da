// SPDX-License-Identifier: Apache-2.0
// The only file that knows Python. Integers stand for addresses; arguments were checked above us.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>

#include "fundad/change_labels.h"
#include "fundad/clean_labels.h"
#include "fundad/distance_filter.h"
#include "fundad/distance_transform.h"
#include "fundad/isa.h"
#include "fundad/kcenter.h"
#include "fundad/kcenter_cuda.h"
#include "fundad/nearest.h"
#include "fundad/nearest_cuda.h"
#include "fundad/poisson_blend.h"
#include "fundad/poisson_blend_cuda.h"
#include "fundad/self_attention.h"
#include "fundad/spline_sample.h"

namespace py = pybind11;
using fundad::DepthBox;
using fundad::LabelBox;
using fundad::PoissonBox;
using fundad::SplineImage;
using fundad::cpu::Isa;
using fundad::cpu::KCenter;
using py::arg;

namespace {

using Address = std::uintptr_t;
using Size = std::int64_t;

#ifdef _OPENMP
constexpr bool kHasOpenmp = true;
#else
constexpr bool kHasOpenmp = false;
#endif

static_assert(sizeof(PoissonBox) == 12 * sizeof(Size), "Python writes boxes as 12 integers");
static_assert(sizeof(SplineImage) == 10 * sizeof(Size), "Python writes images as 10 integers");
static_assert(sizeof(DepthBox) == 6 * sizeof(Size), "Python writes masks as 6 integers");
static_assert(sizeof(LabelBox) == 7 * sizeof(Size), "Python writes labels as 7 integers");

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

fundad::NearestArgs nearest_args(Address q, Address bank, Address center, Size m, Size n, Size d,
                                 Size k, Address scratch, Address dist2, Address index) {
  return {at<const float>(q),  at<const float>(bank), at<const float>(center), m, n, d, k,
          at<double>(scratch), at<float>(dist2),      at<Size>(index)};
}

// In the order of fundad::NearestTiles: the tensors' addresses, then the lengths.
fundad::NearestTiles nearest_tiles(Size tiles, const std::array<Address, 8>& tensors,
                                   const std::array<double, 8>& lengths) {
  return {tiles,
          at<const double>(tensors[0]),
          at<const double>(tensors[1]),
          at<const double>(tensors[2]),
          at<const std::int32_t>(tensors[3]),
          at<const std::uint8_t>(tensors[4]),
          at<const std::int16_t>(tensors[5]),
          at<const std::int16_t>(tensors[6]),
          at<const std::int32_t>(tensors[7]),
          lengths[0],
          lengths[1],
          lengths[2],
          lengths[3],
          lengths[4],
          lengths[5],
          lengths[6],
          lengths[7]};
}

std::unique_ptr<KCenter> make_kcenter(Address x, Size n, Size d, Address z, Size p, double scale,
                                      double slack, Address picks, Size count, Isa isa,
                                      int threads) {
  return std::make_unique<KCenter>(
      fundad::cpu::KCenterInput{at<const float>(x), n, d, at<const float>(z), p, scale, slack},
      at<const Size>(picks), count, isa, threads);
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "Operators of fundad_fast in C++. Called by fundad_fast.ops only.";
  using no_gil = py::call_guard<py::gil_scoped_release>;

  py::native_enum<Isa>(m, "Isa", "enum.IntEnum", "Instruction sets, lowest first.")
      .value("base", Isa::base)
      .value("avx2", Isa::avx2)
      .value("avx512", Isa::avx512)
      .value("avx512vnni", Isa::avx512vnni)
      .finalize();
  m.def("best_isa", fundad::cpu::best_isa, "The highest set that this CPU and this build have.");
  m.def("compiler", [] { return FUNDAD_COMPILER; });
  m.def("has_openmp", [] { return kHasOpenmp; });
  m.def(
      "cuda_architectures", [] { return FUNDAD_CUDA_ARCHITECTURES; },
      "What the CUDA kernels were compiled for; empty if there are none.");

  m.def(
      "distance_filter_cpu",
      [](Address x, Address out, Size b, Size c, Size h, Size w, bool channels_last, Size taps,
         Address half, Address reach, Address row, Address column, Address before, Address after,
         Isa isa, int threads) {
        fundad::cpu::distance_filter(
            {at<const float>(x), at<float>(out), b, c, h, w, channels_last, taps,
             at<const float>(half), at<const Size>(reach), at<const Size>(row),
             at<const Size>(column), at<const float>(before), at<const float>(after)},
            isa, threads);
      },
      arg("x"), arg("out"), arg("b"), arg("c"), arg("h"), arg("w"), arg("channels_last"),
      arg("taps"), arg("half"), arg("reach"), arg("row"), arg("column"), arg("before"),
      arg("after"), arg("isa"), arg("threads"), no_gil());

  m.def(
      "self_attention_cpu",
      [](Address query, Address key, Address value, Address out, Size b, Size n, Size d, Isa isa,
         int threads) {
        fundad::cpu::self_attention({at<const float>(query), at<const float>(key),
                                     at<const float>(value), at<float>(out), b, n, d},
                                    isa, threads);
      },
      arg("query"), arg("key"), arg("value"), arg("out"), arg("b"), arg("n"), arg("d"), arg("isa"),
      arg("threads"), no_gil());

  m.def(
      "short_picture",
      [](Address x, Size n, Size d, Address center, Address axes, Size p, double scale, Address z,
         Isa isa, int threads) {
        return fundad::cpu::short_picture({at<const float>(x), n, d, at<const double>(center),
                                           at<const double>(axes), p, scale, at<float>(z)},
                                          isa, threads);
      },
      arg("x"), arg("n"), arg("d"), arg("center"), arg("axes"), arg("p"), arg("scale"), arg("z"),
      arg("isa"), arg("threads"), no_gil());

  py::class_<KCenter>(m, "KCenter", "A greedy k-centre in progress; see fundad/kcenter.h.")
      .def(py::init(&make_kcenter), arg("x"), arg("n"), arg("d"), arg("z"), arg("p"), arg("scale"),
           arg("slack"), arg("picks"), arg("count"), arg("isa"), arg("threads"), no_gil())
      .def("advance", &KCenter::advance, arg("k"), arg("threads"), no_gil())
      .def(
          "radius2",
          [](KCenter& self, Address radius2, int threads) {
            self.radius2(at<float>(radius2), threads);
          },
          arg("radius2"), arg("threads"), no_gil())
      .def(
          "picks",
          [](const KCenter& self, Address picks) {
            std::copy(self.picks().begin(), self.picks().end(), at<Size>(picks));
          },
          arg("picks"), no_gil());

  m.def(
      "nearest_cpu",
      [](Address q, Address bank, Address center, Size m, Size n, Size d, Size k, Address scratch,
         Address dist2, Address index, Isa isa, int threads) {
        fundad::cpu::nearest(nearest_args(q, bank, center, m, n, d, k, scratch, dist2, index), isa,
                             threads);
      },
      arg("q"), arg("bank"), arg("center"), arg("m"), arg("n"), arg("d"), arg("k"), arg("scratch"),
      arg("dist2"), arg("index"), arg("isa"), arg("threads"), no_gil());

  m.def(
      "spline_sample_cpu",
      [](Address images, Size count, bool zero, int threads) {
        fundad::cpu::spline_sample(at<const SplineImage>(images), count, zero, threads);
      },
      arg("images"), arg("count"), arg("zero"), arg("threads"), no_gil());
  m.def(
      "change_labels_cpu",
      [](Address after, Address before, Address mask, Address out, Size axes, Size channels,
         Address size, Address boxes, Size count, float sigma, bool clean, int threads) {
        fundad::cpu::change_labels(
            {at<const float>(after), at<const float>(before), at<const bool>(mask), at<float>(out),
             axes, channels, at<const Size>(size), at<const Size>(boxes), count, sigma, clean},
            threads);
      },
      arg("after"), arg("before"), arg("mask"), arg("out"), arg("axes"), arg("channels"),
      arg("size"), arg("boxes"), arg("count"), arg("sigma"), arg("clean"), arg("threads"),
      no_gil());
  m.def(
      "clean_labels_cpu",
      [](Address boxes, Size count, int threads) {
        fundad::cpu::clean_labels(at<const LabelBox>(boxes), count, threads);
      },
      arg("boxes"), arg("count"), arg("threads"), no_gil());

  m.def(
      "distance_transform_cpu",
      [](Address boxes, Size count, int threads) {
        fundad::cpu::distance_transform(at<const DepthBox>(boxes), count, threads);
      },
      arg("boxes"), arg("count"), arg("threads"), no_gil());

  m.def("sines_floats", fundad::cpu::sines_floats, arg("n"));
  m.def(
      "fill_sines", [](Size n, Address table) { fundad::cpu::fill_sines(n, at<float>(table)); },
      arg("n"), arg("table"));
  m.def(
      "poisson_scratch",
      [](Address boxes, Size count, int threads) {
        return fundad::cpu::poisson_scratch(at<const PoissonBox>(boxes), count, threads);
      },
      arg("boxes"), arg("count"), arg("threads"));
  m.def(
      "poisson_blend_cpu",
      [](Address boxes, Size count, Address scratch, Isa isa, int threads) {
        fundad::cpu::poisson_blend(at<const PoissonBox>(boxes), count, at<float>(scratch), isa,
                                   threads);
      },
      arg("boxes"), arg("count"), arg("scratch"), arg("isa"), arg("threads"), no_gil());

  m.def(
      "nearest_tiles_cpu",
      [](Address q, Address bank, Size m, Size n, Size d, Size k, Address scratch, Address dist2,
         Address index, Size tiles, const std::array<Address, 8>& tensors,
         const std::array<double, 8>& lengths, Isa isa, int threads) {
        const fundad::TileEffort effort =
            fundad::cpu::nearest_tiles(nearest_args(q, bank, 0, m, n, d, k, scratch, dist2, index),
                                       nearest_tiles(tiles, tensors, lengths), isa, threads);
        return std::array<Size, 3>{effort.tiles, effort.fine_rows, effort.measured_rows};
      },
      arg("q"), arg("bank"), arg("m"), arg("n"), arg("d"), arg("k"), arg("scratch"), arg("dist2"),
      arg("index"), arg("tiles"), arg("tensors"), arg("lengths"), arg("isa"), arg("threads"),
      no_gil());

  m.def(
      "tile_order",
      [](Address z, Size n, Size stride, Size axes, Address order, int threads) {
        fundad::cpu::tile_order(at<const float>(z), n, stride, axes, at<Size>(order), threads);
      },
      arg("z"), arg("n"), arg("stride"), arg("axes"), arg("order"), arg("threads"), no_gil());

  m.def(
      "nearest_cuda",
      [](Address q, Address bank, Address q_z, Address bank_z, Address half2, Address q_norm2,
         Address reach, Address loss, double unit, Size m, Size n, Size d, Size k, Size p,
         Size splits, Address seed_value, Address seed_row, Address worst, Address found_dist2,
         Address found_row, Address head, Address dist2, Address index, Address stream) {
        const fundad::cuda::NearestSearch search{at<const float>(q),
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
                                                 at<Size>(index)};
        fundad::cuda::nearest(search, at<void>(stream));
      },
      arg("q"), arg("bank"), arg("q_z"), arg("bank_z"), arg("half2"), arg("q_norm2"), arg("reach"),
      arg("loss"), arg("unit"), arg("m"), arg("n"), arg("d"), arg("k"), arg("p"), arg("splits"),
      arg("seed_value"), arg("seed_row"), arg("worst"), arg("found_dist2"), arg("found_row"),
      arg("head"), arg("dist2"), arg("index"), arg("stream"), no_gil());

  m.def(
      "kcenter_cuda",
      [](Address x, Address z, Address center, Address ball, Address row, Address reach2,
         Address limit2, Address top2, Address top_slot, Address tops, Address picks, Size d,
         Size p, Size leaves, double unit, double slack, Size first, Size last, bool given,
         Address stream) {
        const fundad::cuda::KCenterArgs args{at<const float>(x),
                                             at<const float>(z),
                                             at<const float>(center),
                                             at<const float>(ball),
                                             at<const Size>(row),
                                             at<double>(reach2),
                                             at<float>(limit2),
                                             at<double>(top2),
                                             at<Size>(top_slot),
                                             at<fundad::cuda::KCenterTop>(tops),
                                             at<Size>(picks),
                                             d,
                                             p,
                                             leaves,
                                             unit,
                                             slack};
        fundad::cuda::kcenter(args, first, last, given, at<void>(stream));
      },
      arg("x"), arg("z"), arg("center"), arg("ball"), arg("row"), arg("reach2"), arg("limit2"),
      arg("top2"), arg("top_slot"), arg("tops"), arg("picks"), arg("d"), arg("p"), arg("leaves"),
      arg("unit"), arg("slack"), arg("first"), arg("last"), arg("given"), arg("stream"), no_gil());

  m.def(
      "poisson_blend_cuda",
      [](Address boxes, Size count, Address cells_inside, Address cells, Address tiles0,
         Address tiles1, Address tiles2, Size blocks_inside, Size blocks, Size blocks0,
         Size blocks1, Size blocks2, Address lengths, Address offsets, Size tables, Address table,
         Address work0, Address work1, bool wide, Address stream) {
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
      },
      arg("boxes"), arg("count"), arg("cells_inside"), arg("cells"), arg("tiles0"), arg("tiles1"),
      arg("tiles2"), arg("blocks_inside"), arg("blocks"), arg("blocks0"), arg("blocks1"),
      arg("blocks2"), arg("lengths"), arg("offsets"), arg("tables"), arg("table"), arg("work0"),
      arg("work1"), arg("wide"), arg("stream"), no_gil());
}
