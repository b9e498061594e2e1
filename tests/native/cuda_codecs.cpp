// The CUDA kernels of the codecs, run on the CPU, against the CPU kernels: same bytes, same values.
#include "cuda_on_cpu.hpp"
#include "digest.hpp"

#include "lepton/codec.hpp"

#include "codec_decode.cu"
#include "codec_encode.cu"

namespace {

using Bytes = std::vector<unsigned char>;

int failures = 0;

void compare(const char* what, int codec, std::size_t n, const void* received, const void* expected,
             std::size_t nbytes) {
  if (nbytes == 0 || std::memcmp(received, expected, nbytes) == 0) return;
  std::printf("%s of codec %d with %zu values differs\n", what, codec, n);
  ++failures;
}

std::vector<float> plain_nan(std::vector<float> values) {
  for (float& value : values) value = std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : value;
  return values;
}

void check(int codec, const std::vector<float>& x) {
  const auto number = static_cast<lepton::Codec>(codec);
  const std::size_t n = x.size();
  const std::size_t nbytes = lepton::encoded_nbytes(number, n);
  Bytes expected(nbytes + 2, 0xA5), received(nbytes + 2, 0xA5);  // at an odd address, with a guard behind
  lepton::encode(number, x.data(), n, reinterpret_cast<std::byte*>(expected.data() + 1));
  cuda_on_cpu::launch(3, 64, [&] { codec_encode(codec, x.data(), static_cast<long long>(n), received.data() + 1); });
  compare("encode", codec, n, received.data(), expected.data(), nbytes + 2);
  for (const int add : {0, 1}) {
    std::vector<float> out = digest::make_values(n, 9), from_gpu = out;
    const auto* payload = reinterpret_cast<const std::byte*>(expected.data() + 1);
    if (add != 0) {
      lepton::decode_add(number, payload, n, out.data());
    } else {
      lepton::decode(number, payload, n, out.data());
    }
    cuda_on_cpu::launch(
        3, 64, [&] { codec_decode(codec, expected.data() + 1, static_cast<long long>(n), add, from_gpu.data()); });
    out = plain_nan(out);
    from_gpu = plain_nan(from_gpu);
    compare(add != 0 ? "decode_add" : "decode", codec, n, from_gpu.data(), out.data(), sizeof(float) * n);
  }
}

}  // namespace

int main() {
  int num_checked = 0;
  for (const int codec : {1, 2, 3, 4, 5}) {
    for (const std::size_t n : {0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 96, 255, 256, 257, 1023, 1024, 1025, 9001}) {
      check(codec, digest::make_values(n, n + 1));
      check(codec, digest::make_extremes(n, n + 2));
      check(codec, std::vector<float>(n, 1e-39f));
      num_checked += 3;
    }
  }
  if (failures == 0) std::printf("%d payloads agree\n", num_checked);
  return failures == 0 ? 0 : 1;
}
