#include "lepton/onednn_product.hpp"

#include "lepton/bf16_rounding.hpp"

#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <string>

namespace lepton {
namespace {

using dnnl::memory;

dnnl::engine& engine() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

// Room for the operands in bfloat16, kept for the next product of the thread.
class Scratch {
 public:
  std::uint16_t* of_size(std::size_t n) {
    if (n > size_) {
      values_.reset(new std::uint16_t[n]);
      size_ = n;
    }
    return values_.get();
  }

 private:
  std::unique_ptr<std::uint16_t[]> values_;
  std::size_t size_ = 0;
};

// Converts the matrices to compact bfloat16 in the order in which they lie, and returns them as oneDNN sees them.
memory converted(const MatrixBatch& x, Scratch& scratch) {
  const bool by_rows = x.column_stride == 1;
  const std::int64_t lines = by_rows ? x.rows : x.columns;
  const std::int64_t length = by_rows ? x.columns : x.rows;
  const std::int64_t line_stride = by_rows ? x.row_stride : x.column_stride;
  const auto line_size = static_cast<std::size_t>(length);
  std::uint16_t* const out = scratch.of_size(static_cast<std::size_t>(x.batch * lines) * line_size);
  std::uint16_t* to = out;
  for (std::int64_t b = 0; b < x.batch; ++b) {
    const float* from = x.data + b * x.batch_stride;
    if (line_stride == length) {
      convert_to_bf16(from, static_cast<std::size_t>(lines) * line_size, to);
      to += lines * length;
      continue;
    }
    for (std::int64_t line = 0; line < lines; ++line, from += line_stride, to += length) {
      convert_to_bf16(from, line_size, to);
    }
  }
  const memory::desc layout({x.batch, x.rows, x.columns}, memory::data_type::bf16,
                            by_rows ? memory::format_tag::abc : memory::format_tag::acb);
  return memory(layout, engine(), out);
}

}  // namespace

bool has_bf16_unit() {
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto wanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (isa & wanted) == wanted;
}

void bf16_product(const MatrixBatch& a, const MatrixBatch& b, float* y) {
  thread_local Scratch scratch_a, scratch_b;
  thread_local dnnl::stream stream(engine());
  try {
    const memory a_memory = converted(a, scratch_a);
    const memory b_memory = converted(b, scratch_b);
    const std::int64_t batch = a.batch == 1 ? b.batch : a.batch;
    const memory y_memory({{batch, a.rows, b.columns}, memory::data_type::f32, memory::format_tag::abc}, engine(), y);
    // Made anew each time: oneDNN keeps compiled primitives by shape.
    const dnnl::matmul::primitive_desc description(engine(), a_memory.get_desc(), b_memory.get_desc(),
                                                   y_memory.get_desc());
    dnnl::matmul(description)
        .execute(stream, {{DNNL_ARG_SRC, a_memory}, {DNNL_ARG_WEIGHTS, b_memory}, {DNNL_ARG_DST, y_memory}});
    stream.wait();
  } catch (const dnnl::error& error) {
    throw std::runtime_error(std::string("oneDNN: ") + error.what());
  }
}

}  // namespace lepton
