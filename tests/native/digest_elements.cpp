// What works element by element: activations, rotary positions, dropout, rounding to bfloat16, embedding gradients.
#include "digest.hpp"

#include "lepton/bf16_rounding.hpp"
#include "lepton/dropout.hpp"
#include "lepton/elementwise.hpp"
#include "lepton/embedding.hpp"

using namespace lepton;
using digest::make_extremes;
using digest::make_values;
using digest::show;

namespace {

constexpr std::size_t n = 10007;

void show_activations() {
  const auto x = make_extremes(n, 1), up = make_values(n, 2), dy = make_values(n, 3);
  std::vector<float> y(n), slope(n), third(n);
  for (const bool approximate : {false, true}) {
    const std::string suffix = approximate ? " with tanh" : "";
    gelu(x.data(), y.data(), slope.data(), n, approximate);
    show("gelu" + suffix, y);
    show("gelu slope" + suffix, slope);
    gelu(x.data(), y.data(), nullptr, n, approximate);
    show("gelu alone" + suffix, y);
  }
  silu(x.data(), y.data(), slope.data(), n);
  show("silu", y);
  show("silu slope", slope);
  silu(x.data(), y.data(), nullptr, n);
  show("silu alone", y);
  swiglu(x.data(), up.data(), y.data(), n);
  show("swiglu", y);
  swiglu_backward(dy.data(), x.data(), up.data(), y.data(), slope.data(), third.data(), n);
  show("swiglu_backward gate", y);
  show("swiglu_backward up", slope);
  show("swiglu_backward y", third);
}

void show_rotary() {
  for (const std::size_t half : {1, 5, 16, 35}) {
    const auto x = make_values(2 * 7 * 3 * 2 * half, 4), cosines = make_values(7 * half, 5),
               sines = make_values(7 * half, 6);
    std::vector<float> y(x.size());
    rotary(x.data(), cosines.data(), sines.data(), -1.0f, y.data(), 2, 7, 3, half);
    show("rotary of " + std::to_string(half), y);
  }
}

void show_dropout() {
  // Rows that begin inside of a counter's four words, and whose numbers pass 2^32.
  const DropoutRows at{0x0123456789abcdefu, 7, 40000000u, 1003, 5, 11, 909, 429496730u};
  const auto x = make_extremes(at.rows * at.n, 7);
  std::vector<std::uint8_t> mask(x.size());
  std::vector<float> y(x.size());
  dropout_mask(at, mask.data());
  show("dropout_mask", mask);
  dropout(at, x.data(), 1.25f, y.data(), mask.data());
  show("dropout", y);
  show("dropout mask", mask);
  apply_mask(x.data(), mask.data(), 1.25f, y.data(), y.size());
  show("apply_mask", y);
}

void show_rounding() {
  const auto x = make_extremes(n, 8);
  std::vector<float> y(n);
  std::vector<std::uint16_t> halves(n);
  round_to_bf16(x.data(), n, y.data());
  show("round_to_bf16", y);
  convert_to_bf16(x.data(), n, halves.data());
  show("convert_to_bf16", halves);
}

void show_embedding() {
  for (const std::size_t features : {1, 7, 16, 67}) {
    const auto rows = make_values(301 * features, 9);
    const auto ids = digest::make_integers(301, 29, 10);
    auto table = make_values(17 * features, 11);
    embedding_add(rows.data(), ids.data(), ids.size(), 5, table.data(), 17, features);
    show("embedding_add of " + std::to_string(features), table);
  }
}

}  // namespace

int main() {
  show_activations();
  show_rotary();
  show_dropout();
  show_rounding();
  show_embedding();
}
