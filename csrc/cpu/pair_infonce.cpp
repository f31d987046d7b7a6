// Host side of pair_infonce on the CPU: checks, outputs, spans of rows shared by threads.

#include "pair_infonce.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "memory.h"

namespace abkd {
namespace {

// Rows whose exponentials are held at a time: a 24th of all, so that they take a small part of the
// B x B scores, and enough for eight threads to have some. Depends on the sizes alone.
int64_t span_rows(int64_t rows) {
  constexpr int64_t kStep = 8 * kScoreRows;
  return std::min(rows, std::max(kStep, rows / 24 / kStep * kStep));
}

double weight_of(const Tensor& weight, int64_t pair) {
  return weight.scalar_type() == ScalarType::Double
             ? static_cast<const double*>(weight.data_ptr())[pair]
             : static_cast<const float*>(weight.data_ptr())[pair];
}

// Arguments of a call, checked, and the memory that its pairs share.
class PairInfonce {
 public:
  PairInfonce(const Tensor& student, const Tensor& teacher, const Tensor& weight,
              double temperature, bool want_student, bool want_teacher)
      : dtype_(student.scalar_type()),
        student_(as_contiguous(student)),
        teacher_(as_contiguous(teacher)),
        weight_(as_contiguous(weight)) {
    STD_TORCH_CHECK(dtype_ == ScalarType::Float || dtype_ == ScalarType::Double,
                    "student must be float32 or float64");
    STD_TORCH_CHECK(student.dim() == 3 && teacher.dim() == 3 && weight.dim() == 2,
                    "student must be [S, B, d], teacher [T, B, d], weight [T, S]");
    STD_TORCH_CHECK(teacher.scalar_type() == dtype_ && weight.scalar_type() == dtype_,
                    "teacher and weight must have the dtype of student");
    for (int64_t dim : {1, 2}) {
      check_size("teacher", teacher, dim, student.size(dim));
    }
    check_size("weight", weight, 0, teacher.size(0));
    check_size("weight", weight, 1, student.size(0));
    STD_TORCH_CHECK(student.size(2) > 0, "rows must not be empty");
    args_.dtype = feature_dtype("student", student);
    args_.rows = student.size(1);
    args_.width = student.size(2);
    args_.inverse_temperature = 1 / temperature;
    allocate(want_student, want_teacher);
  }

  std::tuple<Tensor, Tensor, Tensor> run() {
    for (int64_t i = 0; i < teacher_.size(0) && args_.rows > 0; ++i) {
      args_.teacher = layer(teacher_, i);
      each(panels_of(args_.rows), [&](int64_t panel) { kernels().pack(args_, panel); });
      for (int64_t j = 0; j < student_.size(0); ++j) {
        run_pair(i, j);
      }
    }
    if (teacher_.size(0) == 0) {  // no pair writes them
      torch::stable::fill_(dstudent_, 0.0);
    }
    if (args_.rows == 0) {
      torch::stable::fill_(dissimilarity_, std::nan(""));  // as torch's mean of nothing
    }
    return {dissimilarity_, dstudent_, dteacher_};
  }

 private:
  static const PairInfonceKernels& kernels() { return pair_infonce_kernels(); }

  template <typename Run>
  static void each(int64_t count, const Run& run) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        run(index);
      }
    });
  }

  void* layer(const Tensor& stack, int64_t index) const {
    return static_cast<char*>(stack.data_ptr()) +
           index * args_.rows * args_.width * bytes_of(dtype_);
  }

  void allocate(bool want_student, bool want_teacher) {
    const auto memory = [&](int64_t elements, void** place) {
      buffers_.push_back(empty_output({elements}, dtype_));
      *place = buffers_.back().data_ptr();
    };
    const int64_t panels = panels_of(args_.rows);
    const int64_t held = blocks_of(span_rows(args_.rows)) * kScoreRows;
    memory(panels * args_.width * kPanel, &args_.teacher_t);
    memory(panels * held * kPanel, &args_.exponentials);
    if (want_teacher) {
      memory(panels_of(args_.width) * held * kPanel, &args_.scaled);
    }
    const auto like = [&](const Tensor& x, bool wanted) {
      return empty_output({wanted ? x.size(0) : 0, args_.rows, args_.width}, dtype_);
    };
    dstudent_ = like(student_, want_student);
    dteacher_ = like(teacher_, want_teacher);
    dissimilarity_ = empty_output({teacher_.size(0), student_.size(0)}, ScalarType::Double);
    losses_.resize(args_.rows);
    args_.losses = losses_.data();
  }

  void run_pair(int64_t i, int64_t j) {
    args_.student = layer(student_, j);
    args_.weight = weight_of(weight_, i * student_.size(0) + j) * args_.inverse_temperature /
                   static_cast<double>(args_.rows);
    args_.add_student = i > 0;
    if (dstudent_.size(0) > 0) {
      args_.dstudent = layer(dstudent_, j);
    }
    if (args_.scaled != nullptr) {
      args_.dteacher = layer(dteacher_, i);
    }
    const int64_t most = span_rows(args_.rows);
    for (args_.first_row = 0; args_.first_row < args_.rows; args_.first_row += most) {
      args_.span = std::min(most, args_.rows - args_.first_row);
      args_.add_teacher = j > 0 || args_.first_row > 0;
      run_span();
    }
    double total = 0;
    for (double loss : losses_) {
      total += loss;
    }
    static_cast<double*>(dissimilarity_.data_ptr())[i * student_.size(0) + j] =
        total / static_cast<double>(args_.rows);
  }

  void run_span() {
    torch::stable::parallel_for(0, blocks_of(args_.span), 1, [&](int64_t begin, int64_t end) {
      std::vector<double> product(kScoreRows * args_.width);
      for (int64_t block = begin; block < end; ++block) {
        kernels().score(args_, product.data(), block);
      }
    });
    if (args_.scaled != nullptr) {
      each(panels_of(args_.rows), [&](int64_t panel) { kernels().pull(args_, panel); });
    }
  }

  ScalarType dtype_;
  Tensor student_;
  Tensor teacher_;
  Tensor weight_;
  PairInfonceArgs args_ = {};
  std::vector<Tensor> buffers_;
  std::vector<double> losses_;
  Tensor dissimilarity_;
  Tensor dstudent_;
  Tensor dteacher_;
};

std::tuple<Tensor, Tensor, Tensor> pair_infonce_cpu(Tensor student, Tensor teacher, Tensor weight,
                                                    double temperature, bool want_student,
                                                    bool want_teacher) {
  return PairInfonce(student, teacher, weight, temperature, want_student, want_teacher).run();
}

}  // namespace
}  // namespace abkd

STABLE_TORCH_LIBRARY_IMPL(abkd_fast, CPU, m) {
  m.impl("pair_infonce", TORCH_BOX(&abkd::pair_infonce_cpu));
}
