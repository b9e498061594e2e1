// Windows over images, depthwise convolution and batch normalisation, with channels that fill no, some and whole
// vectors.
#include "digest.hpp"

#include "lepton/batch_norm.hpp"
#include "lepton/images.hpp"

using namespace lepton;
using digest::make_values;
using digest::show;

namespace {

void show_windows(const Windows& windows, const std::string& suffix) {
  const std::int64_t C = windows.channels, rows = windows.count(0), columns = windows.count(1);
  const std::int64_t taps = windows.kernel[0] * windows.kernel[1];
  const std::size_t num_outputs = windows.num_images * rows * columns * C;
  const auto x = digest::make_extremes(windows.num_images * windows.height * windows.width * C, 1);
  const auto dy = make_values(num_outputs, 2), weight = make_values(taps * C, 3);
  auto dx = make_values(x.size(), 4), dweight = make_values(weight.size(), 5);

  std::vector<float> columns_of_windows(num_outputs * taps), y(num_outputs);
  const WindowRange all{0, windows.num_images, 0, rows, 0, C};
  im2col(x.data(), windows, all, columns_of_windows.data());
  show("im2col" + suffix, columns_of_windows);
  columns_of_windows = make_values(columns_of_windows.size(), 6);
  col2im_add(columns_of_windows.data(), windows, all, dx.data());
  show("col2im_add" + suffix, dx);

  const auto finite = make_values(x.size(), 7);
  depthwise_conv2d(finite.data(), weight.data(), windows, y.data());
  show("depthwise_conv2d" + suffix, y);
  depthwise_backward_input_add(dy.data(), weight.data(), windows, dx.data());
  show("depthwise_backward_input_add" + suffix, dx);
  depthwise_backward_weight_add(dy.data(), finite.data(), windows, dweight.data());
  show("depthwise_backward_weight_add" + suffix, dweight);
}

void show_max_pool(std::int64_t C, const std::string& suffix) {
  const Windows windows{3, 9, 7, C, {3, 2}, {2, 2}, {1, 1}, {1, 1}};
  const auto x = digest::make_extremes(3 * 9 * 7 * C, 8);
  const std::int64_t num_windows = windows.count(0) * windows.count(1);
  std::vector<float> y(3 * num_windows * C), dx(x.size());
  std::vector<std::int32_t> places(y.size());
  max_pool2d(x.data(), windows, y.data(), places.data());
  show("max_pool2d" + suffix, y);
  show("max_pool2d places" + suffix, places);
  const auto dy = make_values(y.size(), 9);
  max_pool2d_backward_add(dy.data(), places.data(), 3, num_windows, 9 * 7, C, dx.data());
  show("max_pool2d_backward_add" + suffix, dx);
}

void show_batch_norm(std::int64_t C, const std::string& suffix) {
  const std::int64_t n = 189;
  const auto x = make_values(n * C, 10), dy = make_values(n * C, 11);
  std::vector<double> mean(C), squares(C), sum_dy(C), sum_dy_x(C);
  channel_moments(x.data(), n, C, mean.data(), squares.data());
  show("channel_moments mean" + suffix, mean);
  show("channel_moments squares" + suffix, squares);
  channel_gradient_sums(dy.data(), x.data(), n, C, mean.data(), sum_dy.data(), sum_dy_x.data());
  show("channel_gradient_sums dy" + suffix, sum_dy);
  show("channel_gradient_sums dy x" + suffix, sum_dy_x);
  const auto a = make_values(C, 12), b = make_values(C, 13), c = make_values(C, 14), d = make_values(C, 15);
  std::vector<float> out(x.size());
  channel_affine(x.data(), n, C, a.data(), b.data(), c.data(), out.data());
  show("channel_affine" + suffix, out);
  channel_gradient(dy.data(), x.data(), n, C, a.data(), b.data(), c.data(), d.data(), out.data());
  show("channel_gradient" + suffix, out);
}

}  // namespace

int main() {
  for (const std::int64_t C : {1, 3, 16, 37}) {
    const std::string suffix = " of " + std::to_string(C);
    show_windows({3, 9, 7, C, {3, 3}, {1, 2}, {1, 1}, {1, 1}}, suffix);
    show_windows({2, 9, 7, C, {3, 2}, {1, 1}, {2, 0}, {2, 1}}, suffix + " dilated");
    show_max_pool(C, suffix);
    show_batch_norm(C, suffix);
  }
}
