// Exact sums, sums in rank order and optimizer updates.
#include "digest.hpp"

#include "lepton/exact_sum.hpp"
#include "lepton/sum.hpp"
#include "lepton/update.hpp"

using namespace lepton;
using digest::make_values;
using digest::show;

namespace {

constexpr std::size_t n = 100003;

void show_exact_sums(const std::vector<float>& x) {
  std::vector<float> grads = x, out(n);
  std::vector<double> totals(n, 0.25), others(n, -3.0);
  const float largest = accumulate_rounded(grads.data(), totals.data(), n, 0x1p-40);
  show("accumulate_rounded", totals);
  show("accumulate_rounded, largest", &largest, sizeof largest);
  collect_totals({totals.data(), others.data()}, n, out.data());
  show("collect_totals", out);
  const ExactSquares squares = exact_squares(x.data(), n, 0x1p-30, 0x1p-65);
  show("exact_squares", &squares, sizeof squares);
}

void show_updates(const std::vector<float>& x) {
  std::vector<float> values = make_values(n, 3), m = make_values(n, 4), v(n, 0.0f);
  sgd_update(values.data(), x.data(), nullptr, n, 0.03, 0.0, 0.01, 0.37);
  show("sgd_update", values);
  sgd_update(values.data(), x.data(), m.data(), n, 0.03, 0.9, 0.01, 0.37);
  show("sgd_update with momentum", values);
  for (int step = 1; step <= 3; ++step) {
    adamw_update(values.data(), x.data(), m.data(), v.data(), n, 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.37, step);
  }
  show("adamw_update", values);
  std::vector<float> direction = x;
  lamb_direction(values.data(), direction.data(), m.data(), v.data(), n, 0.9, 0.999, 1e-6, 0.1, 0.37, 4);
  show("lamb_direction", direction);
  momentum_share(direction.data(), m.data(), n, 0.9, 3);
  show("momentum_share", direction);
  frozen_adam_update(values.data(), direction.data(), m.data(), v.data(), n, 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.37, 5, 4);
  show("frozen_adam_update", values);
  const double sum = sum_of_squares(x.data(), n);
  show("sum_of_squares", &sum, sizeof sum);
}

}  // namespace

int main() {
  std::vector<float> x = make_values(n, 1), y = make_values(n, 5), out(n);
  show_exact_sums(x);
  show_updates(x);
  sum_slices({x.data(), y.data(), x.data()}, 3, n - 2, out.data());
  show("sum_slices", out);
  add_to(y.data(), n, x.data());
  show("add_to", x);
  copy_scaled(x.data(), n, 0.3f, out.data());
  show("copy_scaled", out);
}
