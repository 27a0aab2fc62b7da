// SPDX-License-Identifier: Apache-2.0
// The only file that knows Python. Integers stand for addresses; arguments were checked above us.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>

#include "fundad/isa.h"
#include "fundad/kcenter.h"
#include "fundad/nearest.h"

namespace py = pybind11;
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
      [](Address q, Address bank, Address center, Size m, Size n, Size d, Size k, Address scratch,
         Address dist2, Address index, Address stream) {
        fundad::cuda::nearest(nearest_args(q, bank, center, m, n, d, k, scratch, dist2, index),
                              at<void>(stream));
      },
      arg("q"), arg("bank"), arg("center"), arg("m"), arg("n"), arg("d"), arg("k"), arg("scratch"),
      arg("dist2"), arg("index"), arg("stream"), no_gil());
}
