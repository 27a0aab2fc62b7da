// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set; CMake gives FUNDAD_ISA and the flags. Only -inl.h files and
// plain declarations may be included here: see vec-inl.h for the reason.
#include "kernels.h"

#include "distance_filter-inl.h"
#include "kcenter-inl.h"
#include "nearest-inl.h"
#include "nearest_tiles-inl.h"
#include "picture-inl.h"
#include "poisson_blend-inl.h"
#include "self_attention-inl.h"

namespace fundad::cpu::FUNDAD_ISA {
extern const Kernels table;
const Kernels table{
    filter_channels, picture,         kcenter_candidates,  kcenter_apply,         nearest_begin,
    nearest_pack,    nearest_search,  nearest_in_tiles,    poisson_begin,         poisson_across,
    poisson_end,     kAttentionPanel, attention_pack_keys, attention_pack_values, attention_logits,
    attention_weigh, attention_mix,   attention_end};
}  // namespace fundad::cpu::FUNDAD_ISA
