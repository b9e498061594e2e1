// Codecs, with error feedback and stochastic rounding, and top-k payloads.
#include "digest.hpp"

#include "lepton/codec.hpp"
#include "lepton/topk.hpp"

using namespace lepton;
using digest::make_extremes;
using digest::make_values;
using digest::show;

namespace {

void show_codec(Codec codec, const std::vector<float>& x, const std::string& of) {
  const std::size_t n = x.size();
  const std::size_t nbytes = encoded_nbytes(codec, n);
  const std::string suffix = " of codec " + std::to_string(static_cast<int>(codec)) + of;
  std::vector<std::byte> payload(nbytes + 1);  // at an odd address, as payloads may be
  std::vector<float> out = make_values(n, 2), residual = make_values(n, 3);
  encode(codec, x.data(), n, payload.data() + 1);
  show("encode" + suffix, payload);
  decode_add(codec, payload.data() + 1, n, out.data());
  show("decode_add" + suffix, out);
  decode(codec, payload.data() + 1, n, out.data());
  show("decode" + suffix, out);
  encode_with_feedback(codec, make_values(n, 4).data(), residual.data(), n, payload.data() + 1);
  show("encode_with_feedback" + suffix, payload);
  encode_with_feedback(codec, nullptr, residual.data(), n, payload.data() + 1);
  show("encode_with_feedback of nothing" + suffix, payload);
  show("residual" + suffix, residual);
  if (!has_stochastic(codec)) return;
  encode_stochastic(codec, x.data(), n, payload.data() + 1, {0x0123456789abcdefu, 7, 5, 1}, std::uint64_t{1} << 34);
  show("encode_stochastic" + suffix, payload);
}

void show_topk(float threshold, const std::vector<float>& x, const std::string& of) {
  const std::size_t n = x.size();
  std::vector<std::byte> payload(topk_max_nbytes(n) + 1);
  std::vector<float> out = make_values(n, 5), residual = make_values(n, 6);
  const auto show_payload = [&](const std::string& name, TopkResult result) {
    show(name + " at " + std::to_string(threshold) + of, payload.data() + 1, result.nbytes);
    topk_decode_add(payload.data() + 1, result.nbytes, n, out.data());
  };
  show_payload("topk_encode", topk_encode(x.data(), n, threshold, payload.data() + 1));
  show_payload("topk_encode_with_feedback",
               topk_encode_with_feedback(x.data(), residual.data(), n, threshold, payload.data() + 1));
  show("sums of topk_decode_add" + of, out);
  show("residual of topk" + of, residual);
}

}  // namespace

int main() {
  constexpr std::size_t n = 140003;
  for (const std::vector<float>& x : {make_values(n, 1), make_extremes(n, 8)}) {
    const std::string of = std::isfinite(x[5]) ? " of values" : " of extremes";
    for (const Codec codec : {Codec::exact, Codec::bf16, Codec::int8, Codec::fp16, Codec::int4, Codec::sign1}) {
      show_codec(codec, x, of);
    }
    for (const float threshold : {1e-3f, 200.0f}) show_topk(threshold, x, of);
  }
}
