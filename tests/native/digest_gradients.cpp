// Sums of payloads, sums in rank order and optimizer updates.
#include "digest.hpp"

#include "lepton/codec.hpp"
#include "lepton/sum.hpp"
#include "lepton/update.hpp"

using namespace lepton;
using digest::make_values;
using digest::show;

namespace {

constexpr std::size_t n = 100003;

void show_payload_sums(const std::vector<float>& x) {
  for (const Codec codec : {Codec::exact, Codec::bf16, Codec::int8, Codec::fp16, Codec::int4, Codec::sign1}) {
    const std::size_t nbytes = encoded_nbytes(codec, n);
    // At an odd address, as payloads may be.
    std::vector<std::byte> payload(2 * nbytes + 1);
    std::vector<float> out = make_values(n, 2);
    encode(codec, x.data(), n, payload.data() + 1);
    encode(codec, out.data(), n, payload.data() + 1 + nbytes);
    add_payloads(codec, payload.data() + 1, nbytes, 2, 1, n, out.data());
    show("add_payloads of codec " + std::to_string(static_cast<int>(codec)), out);
  }
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
  show_payload_sums(x);
  show_updates(x);
  sum_slices({x.data(), y.data(), x.data()}, 3, n - 2, out.data());
  show("sum_slices", out);
}
