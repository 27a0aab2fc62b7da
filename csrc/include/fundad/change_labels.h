// SPDX-License-Identifier: Apache-2.0
// Labels of synthetic anomalies: how much images changed.
#pragma once
#include <cstdint>

namespace fundad {

// Images of one to three axes, after and before [b, channels, *size] and mask [b, *size], -> out
// [b, *size], of which boxes are written.
struct ChangeLabelsArgs {
  const float* after;
  const float* before;
  const bool* mask;
  float* out;
  std::int64_t axes, channels;
  const std::int64_t* size;   // [axes]
  const std::int64_t* boxes;  // [count, 1 + 2 axes]: image, first cell, extent; none is empty
  std::int64_t count;
  float sigma;
  bool clean;  // as clean_labels does
};

namespace cpu {

// In the mask 1 - exp(-d^2 / 2 sigma^2), d being the mean absolute change of the channels; else 0.
void change_labels(const ChangeLabelsArgs& args, int threads);

}  // namespace cpu

}  // namespace fundad
