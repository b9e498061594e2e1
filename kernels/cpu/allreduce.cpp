#include "lepton/allreduce.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "lepton/mpi_check.hpp"
#include "lepton/sum.hpp"

namespace lepton {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr auto kCut = static_cast<std::int64_t>(kMaxBlock);  // slices hold whole blocks of every codec
constexpr double kLongSleep_s = 0.1;                         // any change in the node wakes the sleeper
constexpr double kShortSleep_s = 50e-6;                      // about the time of a message
// Up to this many values on a single node every rank sums all of them itself: one wait less.
constexpr std::int64_t kSumEverywhere = 16384;

constexpr std::int64_t kLongestMpiSum = std::int64_t{1} << 30;  // MPI counts in int

constexpr std::int64_t kChunksOfShort = 4;
constexpr std::int64_t kShortestChunk = 32 * 1024;

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// What the ranks of a node tell each other: how many chunks they have copied in, summed, reduced and copied out.
enum Counter { kIn, kSummed, kReduced, kOut, kNumCounters };

PipelineOptions per_owner(const AllReduceOptions& options) {
  PipelineOptions pipeline = options.pipeline;
  const std::int64_t share = pipeline.chunk_values / std::max(options.num_owners, 1);
  pipeline.chunk_values = std::max(round_up(share, kCut), kCut);
  return pipeline;
}

void put(const float* x, std::size_t n, float scale, float* out) {
  if (scale != 1.0f)
    copy_scaled(x, n, scale, out);
  else if (x != out && n > 0)
    std::memcpy(out, x, n * sizeof(float));
}

void take(const float* x, std::int64_t at, std::size_t n, float* out) {
  if (n == 0) return;
  if (x == nullptr)
    std::memset(out, 0, n * sizeof(float));
  else if (x + at != out)
    std::memmove(out, x + at, n * sizeof(float));
}

}  // namespace

std::size_t AllReduce::signal_nbytes(int num_ranks) { return Signals::nbytes(num_ranks, kNumCounters); }

std::size_t AllReduce::staging_values(const AllReduceOptions& options) {
  if (options.num_ranks == 1) return 0;
  return static_cast<std::size_t>(options.num_ranks + 1) * static_cast<std::size_t>(options.pipeline.depth) *
         static_cast<std::size_t>(per_owner(options).chunk_values) * static_cast<std::size_t>(options.num_owners);
}

Extent AllReduce::slice(std::int64_t size, int num_owners, int owner) {
  return part({0, size}, num_owners, owner, kCut);
}

AllReduce::AllReduce(std::byte* signals, std::size_t signal_nbytes, float* staging, MPI_Comm peers,
                     AllReduceOptions options)
    : options_(std::move(options)),
      signals_(signals, signal_nbytes, options_.num_ranks, kNumCounters, options_.rank, options_.spin_s),
      staging_(staging),
      peers_(options_.rank < options_.num_owners ? peers : MPI_COMM_NULL, per_owner(options_)),
      chunk_values_(per_owner(options_).chunk_values) {
  if (options_.num_owners < 1 || options_.num_owners > options_.num_ranks)
    throw std::invalid_argument("the number of owners must lie between 1 and the ranks of the node");
  if (options_.node_ranks.size() != static_cast<std::size_t>(options_.num_ranks))
    throw std::invalid_argument("every rank of the node needs a name");
  if (options_.background)
    background_.begin(signals_, {[this] { return !operations_.empty(); }, [this] { return advance(); },
                                 [this] { return !peers_.idle(); }});
}

std::uint64_t AllReduce::start(const Reduction& reduction) {
  const auto lock = background_.lock();
  std::int64_t longest = 0;
  for (int owner = 0; owner < options_.num_owners; ++owner)
    longest = std::max(longest, slice(reduction.size, options_.num_owners, owner).size());
  // A short array is cut as well, so that it moves as a pipeline, but not into messages that are mostly latency.
  const std::int64_t chunk =
      std::clamp(round_up(longest / kChunksOfShort, kCut), std::min(kShortestChunk, chunk_values_), chunk_values_);
  const auto chunks = static_cast<std::uint64_t>((longest + chunk - 1) / chunk);
  operations_.push_back({reduction, ++num_started_, num_chunks_, num_chunks_ + chunks, chunk});
  num_chunks_ += chunks;
  advance();
  retire();
  background_.wake();
  return num_started_;
}

double AllReduce::sum(const Reduction& reduction) {
  const auto begin = Clock::now();
  finish(start(reduction));
  return seconds_since(begin);
}

double AllReduce::sum_by_mpi(float* values, std::int64_t size, float scale) {
  const auto begin = Clock::now();
  for (std::int64_t at = 0; at < size; at += kLongestMpiSum) {
    const auto n = static_cast<int>(std::min(kLongestMpiSum, size - at));
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, values + at, n, MPI_FLOAT, MPI_SUM, options_.world), "MPI_Allreduce");
  }
  put(values, static_cast<std::size_t>(size), scale, values);
  return seconds_since(begin);
}

bool AllReduce::progress() {
  const auto lock = background_.lock();
  return advance();
}

bool AllReduce::done(std::uint64_t number) {
  const auto lock = background_.lock();
  return num_done_ >= number;
}

std::int64_t AllReduce::sent_nbytes() {
  const auto lock = background_.lock();
  return peers_.sent_nbytes();
}

bool AllReduce::advance() {
  bool moved = peers_.progress();
  if (options_.num_ranks == 1) {
    moved |= advance_alone();
  } else {
    // From the end backwards, so that memory becomes free before it is asked for.
    moved |= copy_out();
    moved |= publish_reduced();
    moved |= sum();
    moved |= copy_in();
  }
  if (moved) retire();
  return moved;
}

void AllReduce::retire() {
  while (!operations_.empty() && operations_.front().last <= next_out_) {
    num_done_ = operations_.front().number;
    operations_.pop_front();
  }
}

const AllReduce::Operation& AllReduce::operation(std::uint64_t chunk) const {
  return *std::find_if(operations_.begin(), operations_.end(), [&](const Operation& o) { return chunk < o.last; });
}

Extent AllReduce::extent(const Operation& operation, std::uint64_t chunk, int owner) const {
  const Extent whole = slice(operation.reduction.size, options_.num_owners, owner);
  const std::int64_t at = whole.lo + static_cast<std::int64_t>(chunk - operation.first) * operation.chunk_values;
  return {std::min(at, whole.hi), std::min(at + operation.chunk_values, whole.hi)};
}

float* AllReduce::staged(int rank, std::uint64_t chunk) const {
  const auto slot = static_cast<std::int64_t>(chunk % static_cast<std::uint64_t>(options_.pipeline.depth));
  return staging_ + (rank * options_.pipeline.depth + slot) * chunk_values_ * options_.num_owners;
}

bool AllReduce::reached(int counter, std::uint64_t value) const {
  return signals_.all_reached(counter, static_cast<std::uint32_t>(value));
}

bool AllReduce::sums_everywhere(const Operation& operation) const {
  return options_.num_nodes == 1 && operation.reduction.residual == nullptr &&
         operation.reduction.size <= kSumEverywhere;
}

// A rank without neighbours works in the output array itself.
bool AllReduce::advance_alone() {
  bool moved = false;
  if (next_in_ < num_chunks_ && submitted_.size() < 2 * static_cast<std::size_t>(options_.pipeline.depth)) {
    const Operation& op = operation(next_in_);
    const Reduction& r = op.reduction;
    const Extent here = extent(op, next_in_, 0);
    take(r.input, here.lo, static_cast<std::size_t>(here.size()), r.output + here.lo);
    float* const residual = r.residual != nullptr ? r.residual + here.lo : nullptr;
    PeerSlice slice{r.output + here.lo, here.size(), r.codec, residual, true, r.share};
    submitted_.push_back({peers_.submit(slice), slice.values, slice.size, r.scale});
    ++next_in_;
    moved = true;
  }
  while (!submitted_.empty() && peers_.done(submitted_.front().ticket)) {
    const Submitted& s = submitted_.front();
    put(s.values, static_cast<std::size_t>(s.size), s.scale, s.values);
    submitted_.pop_front();
    ++next_out_;
    moved = true;
  }
  return moved;
}

bool AllReduce::copy_in() {
  const auto depth = static_cast<std::uint64_t>(options_.pipeline.depth);
  if (next_in_ == num_chunks_ || !reached(kSummed, next_in_ + 1 - depth)) return false;
  const Operation& op = operation(next_in_);
  float* const to = staged(options_.rank, next_in_);
  for (int owner = 0; owner < options_.num_owners; ++owner) {
    const Extent here = extent(op, next_in_, owner);
    take(op.reduction.input, here.lo, static_cast<std::size_t>(here.size()), to + owner * chunk_values_);
  }
  signals_.set(kIn, static_cast<std::uint32_t>(++next_in_));
  return true;
}

bool AllReduce::sum() {
  const auto depth = static_cast<std::uint64_t>(options_.pipeline.depth);
  if (next_sum_ == next_in_ || !reached(kIn, next_sum_ + 1)) return false;
  const Operation& op = operation(next_sum_);
  const Reduction& r = op.reduction;
  const bool everywhere = sums_everywhere(op);
  if (!everywhere && !reached(kOut, next_sum_ + 1 - depth)) return false;
  if (everywhere) {
    sum_to_output(op);
    submitted_.push_back({0, nullptr, 0, 1.0f});
  } else {
    const Extent here = options_.rank < options_.num_owners ? extent(op, next_sum_, options_.rank) : Extent{0, 0};
    const std::int64_t at = options_.rank * chunk_values_;
    float* const out = result(next_sum_) + at;
    std::vector<float*> sources;
    for (int rank = 0; rank < options_.num_ranks; ++rank) sources.push_back(staged(rank, next_sum_) + at);
    if (here.size() > 0) sum_slices(sources, 0, here.size(), out);
    float* const residual = r.residual != nullptr && here.size() > 0 ? r.residual + here.lo : nullptr;
    PeerSlice slice{out, here.size(), r.codec, residual, true, r.share};
    submitted_.push_back({peers_.submit(slice), out, here.size(), r.scale});
  }
  signals_.set(kSummed, static_cast<std::uint32_t>(++next_sum_));
  return true;
}

void AllReduce::sum_to_output(const Operation& op) const {
  const Reduction& r = op.reduction;
  std::vector<float*> sources(static_cast<std::size_t>(options_.num_ranks));
  for (int owner = 0; owner < options_.num_owners; ++owner) {
    const Extent here = extent(op, next_sum_, owner);
    for (int rank = 0; rank < options_.num_ranks; ++rank)
      sources[static_cast<std::size_t>(rank)] = staged(rank, next_sum_) + owner * chunk_values_;
    sum_slices(sources, 0, here.size(), r.output + here.lo);
    put(r.output + here.lo, static_cast<std::size_t>(here.size()), r.scale, r.output + here.lo);
  }
}

bool AllReduce::publish_reduced() {
  const std::uint64_t before = next_reduced_;
  while (!submitted_.empty() && peers_.done(submitted_.front().ticket)) {
    submitted_.pop_front();
    ++next_reduced_;
  }
  if (next_reduced_ == before) return false;
  signals_.set(kReduced, static_cast<std::uint32_t>(next_reduced_));
  return true;
}

bool AllReduce::copy_out() {
  if (next_out_ == next_reduced_) return false;
  const Operation& op = operation(next_out_);
  const Reduction& r = op.reduction;
  if (!sums_everywhere(op)) {
    if (!reached(kReduced, next_out_ + 1)) return false;
    for (int owner = 0; owner < options_.num_owners; ++owner) {
      const Extent here = extent(op, next_out_, owner);
      put(result(next_out_) + owner * chunk_values_, static_cast<std::size_t>(here.size()), r.scale,
          r.output + here.lo);
    }
  }
  signals_.set(kOut, static_cast<std::uint32_t>(++next_out_));
  return true;
}

void AllReduce::finish(std::uint64_t number) {
  if (number > num_started_) throw std::invalid_argument("no reduction of that number was started");
  const ProgressThread::Caller caller(background_);
  auto last_move = Clock::now();
  for (;;) {
    const std::uint32_t ticket = signals_.ticket();
    bool exchanging = false;
    {
      const auto lock = background_.lock();
      // MPI moves only while it is called, so while it has something to move the sleep is short.
      exchanging = !peers_.idle();
      if (num_done_ >= number) return;
      if (advance()) {
        last_move = Clock::now();
        continue;
      }
      if (seconds_since(last_move) > options_.timeout_s)
        throw StallError("the all-reduce did not move for " + std::to_string(static_cast<int>(options_.timeout_s)) +
                         " s, waiting for " + absent());
    }
    const auto asleep = Clock::now();
    if (seconds_since(last_move) < options_.spin_s)
      ::sched_yield();
    else
      signals_.sleep(ticket, exchanging ? kShortSleep_s : kLongSleep_s);
    wait_s_ += seconds_since(asleep);
  }
}

std::string AllReduce::absent() const {
  std::vector<int> who;
  const auto add = [&](const std::vector<int>& indices, const std::vector<int>& names) {
    for (const int index : indices) who.push_back(names.at(static_cast<std::size_t>(index)));
  };
  if (options_.num_ranks > 1) add(signals_.behind(kIn, static_cast<std::uint32_t>(next_out_ + 1)), options_.node_ranks);
  if (who.empty()) add(peers_.missing(), options_.peer_ranks);
  if (who.empty() && options_.num_ranks > 1)
    add(signals_.behind(kReduced, static_cast<std::uint32_t>(next_out_ + 1)), options_.node_ranks);
  if (who.empty() && options_.num_ranks > 1)
    add(signals_.behind(kOut, static_cast<std::uint32_t>(next_out_ + 1)), options_.node_ranks);
  std::string names;
  for (const int rank : who) names += (names.empty() ? "" : ", ") + std::to_string(rank);
  return "rank(s) " + names;
}

}  // namespace lepton
