// The operators of this backend, in the order of datong/spec/ops.py.
#include "core/error.h"
#include "executor/task.h"

namespace datong {
namespace {

struct Operator {
  const char* name;
  MakeTask make;
};

constexpr Operator kOperators[] = {
    {"embedding", make_embedding},
    {"linear", make_linear},
    {"rms_norm", make_rms_norm},
    {"rope_table", make_rope_table},
    {"rope", make_rope},
    {"attention", make_attention},
    {"causal_conv", make_causal_conv},
    {"gated_delta", make_gated_delta},
    {"linear_attention", make_linear_attention},
    {"select_keys", make_select_keys},
    {"sparse_attention", make_sparse_attention},
    {"latent_attention", make_latent_attention},
    {"layer_norm", make_layer_norm},
    {"glu", make_glu},
    {"add", make_elementwise},
    {"mul", make_elementwise},
    {"sigmoid", make_elementwise},
    {"scale", make_scale},
    {"scale_groups", make_scale_groups},
    {"moe", make_moe},
    {"slice", make_slice},
    {"concat", make_concat},
    {"take_rows", make_take_rows},
    {"add_rms_norm", make_add_rms_norm},
    {"linear_multi", make_linear_multi},
    {"linear_glu", make_linear_glu},
    {"linear_add", make_linear_add},
};

constexpr const char* kFused[] = {"add_rms_norm", "linear_multi", "linear_glu", "linear_add", nullptr};

}  // namespace

std::unique_ptr<Task> make_task(const NodeView& node, const BuildContext& context) {
  for (const Operator& o : kOperators)
    if (node.op() == o.name) return o.make(node, context);
  node.refuse("this backend has no such operator");
}

const char* const* fused_operators() { return kFused; }

}  // namespace datong
