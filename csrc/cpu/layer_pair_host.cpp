#include "layer_pair_host.h"

namespace abkd {
namespace {

std::vector<int64_t> widths_of(const std::vector<Tensor>& states) {
  std::vector<int64_t> widths;
  for (const Tensor& state : states) {
    STD_TORCH_CHECK(state.dim() == 2, "student_states must be matrices");
    widths.push_back(state.size(1));
  }
  return widths;
}

LayerStates view(const Tensor& states) {
  return {states.data_ptr(), states.stride(0), states.stride(1), states.size(1)};
}

std::optional<Tensor> check_rows(const char* name, const std::optional<Tensor>& rows,
                                 ScalarType dtype) {
  if (!rows.has_value()) {
    return std::nullopt;
  }
  return check_shape(name, *rows, {rows->numel()}, dtype);
}

}  // namespace

NodeTensors::NodeTensors(const Tensor& teacher, const Layers& layers,
                         const std::vector<Tensor>& states, const std::optional<Tensor>& nodes,
                         const std::optional<Tensor>& weight, const Tensor& centre)
    : dtype_(states.at(0).scalar_type()),
      num_nodes_(teacher.size(0)),
      student_(widths_of(states)),
      nodes_(check_rows("nodes", nodes, ScalarType::Long)),
      weight_(check_rows("weight", weight, dtype_)),
      centre_(check_shape("centre", centre, {student_.total()}, dtype_)) {
  STD_TORCH_CHECK(teacher.dim() == 2 && teacher.size(1) == layers.total(),
                  "widths must sum to teacher.size(1)");
  const Dtype teacher_dtype = feature_dtype("teacher", teacher);
  STD_TORCH_CHECK(teacher_dtype != Dtype::kFloat16, "teacher must not be float16");
  for (const Tensor& state : states) {
    STD_TORCH_CHECK(state.size(0) == num_nodes_ && state.scalar_type() == dtype_,
                    "student_states must be [N, d] of one dtype");
    states_.push_back(view(state));
  }
  const int64_t num_rows = nodes_.has_value() ? nodes_->numel() : num_nodes_;
  STD_TORCH_CHECK(!weight_.has_value() || weight_->numel() == num_rows,
                  "weight must have an entry per node that counts");
  const int64_t* rows =
      nodes_.has_value() ? static_cast<const int64_t*>(nodes_->data_ptr()) : nullptr;
  for (int64_t row = 0; rows != nullptr && row < num_rows; ++row) {
    STD_TORCH_CHECK(rows[row] >= 0 && rows[row] < num_nodes_, "nodes must be in [0, N)");
  }
  set_.dtype = compute_dtype("student_states", dtype_);
  set_.teacher_dtype = teacher_dtype;
  set_.teacher = view(teacher);
  set_.widths = layers.widths.data();
  set_.state = states_.data();
  set_.num_teacher = layers.count();
  set_.num_student = student_.count();
  set_.student_width = student_.total();
  set_.nodes = rows;
  set_.weight = weight_.has_value() ? weight_->data_ptr() : nullptr;
  set_.centre = centre_.data_ptr();
  set_.num_rows = num_rows;
  set_.groups = 1;
}

Tensor NodeTensors::gradients(bool wanted) const {
  Tensor dstates = empty_output({wanted ? num_nodes_ : 0, student_.total()}, dtype_);
  return wanted && nodes_.has_value() ? torch::stable::zero_(dstates) : dstates;
}

int64_t NodeTensors::teacher_bytes() const {
  const int64_t size = set_.teacher_dtype == Dtype::kBFloat16 ? 2 : 4;
  return set_.num_rows * set_.teacher.width * size;
}

}  // namespace abkd
