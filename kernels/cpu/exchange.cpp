#include "lepton/exchange.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <string>

#include "lepton/sum.hpp"

namespace lepton {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr int kBucketsInFlight = 8;
constexpr double kLongSleep_s = 0.1;     // any change wakes the sleeper; this bounds a lost wake-up
constexpr double kShortSleep_s = 50e-6;  // about the time of a message

}  // namespace

std::size_t Exchange::signal_nbytes(int num_ranks, int num_buckets) {
  return Signals::nbytes(num_ranks, num_buckets + 1);
}

Exchange::Exchange(std::vector<float*> grads, std::byte* signal_memory, std::size_t signal_nbytes, MPI_Comm peers,
                   std::vector<std::int64_t> bounds, ExchangeOptions options)
    : grads_(std::move(grads)),
      signals_(signal_memory, signal_nbytes, static_cast<int>(grads_.size()), static_cast<int>(bounds.size()),
               options.rank, options.spin_s),
      peers_(options.rank < options.num_owners ? peers : MPI_COMM_NULL, pipeline()),
      buckets_(bounds.empty() ? 0 : bounds.size() - 1),
      options_(options) {
  if (bounds.empty() || bounds.front() != 0 || !std::is_sorted(bounds.begin(), bounds.end()))
    throw std::invalid_argument("bucket bounds must start at 0 and grow");
  for (std::size_t i = 1; i + 1 < bounds.size(); ++i)
    if (bounds[i] % kBlock != 0) throw std::invalid_argument("inner bucket bounds must be multiples of 1024");
  if (options_.num_owners < 1 || options_.num_owners > static_cast<int>(grads_.size()))
    throw std::invalid_argument("the number of owners must lie between 1 and the ranks of the node");
  block_values(options_.codec);  // refuses what is no codec
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    bucket.whole = {bounds[b], bounds[b + 1]};
    bucket.slice = options_.rank < options_.num_owners ? part(bucket.whole, options_.num_owners, options_.rank, kBlock)
                                                       : Extent{bucket.whole.hi, bucket.whole.hi};
  }
  next_ = num_buckets() - 1;
  if (options_.background)
    background_.begin(signals_,
                      {[this] { return busy(); }, [this] { return advance(); }, [this] { return !peers_.idle(); }});
}

PipelineOptions Exchange::pipeline() {
  PipelineOptions pipeline;
  pipeline.chunk_values = std::numeric_limits<std::int64_t>::max() / 2;  // a bucket is a chunk
  pipeline.depth = kBucketsInFlight;
  pipeline.cut_values = kBlock;
  return pipeline;
}

Extent Exchange::owned(int bucket) const {
  const Bucket& b = buckets_[static_cast<std::size_t>(bucket)];
  return options_.own_pieces ? part(b.slice, peers_.num_peers(), peers_.peer(), kBlock) : b.slice;
}

void Exchange::start(int index) {
  if (buckets_.at(static_cast<std::size_t>(index)).started.exchange(true))
    throw std::logic_error("bucket " + std::to_string(index) + " was started twice in one step");
  signals_.set(index, step_ + 1);
  if (background_.runs())
    background_.wake();
  else
    progress();
}

bool Exchange::progress() {
  const auto lock = background_.lock();
  return advance();
}

bool Exchange::advance() {
  bool moved = peers_.progress();
  for (int b = num_buckets() - 1; b >= 0; --b) moved |= advance(b);
  return moved;
}

void Exchange::finish() {
  const ProgressThread::Caller caller(background_);
  for (int b = num_buckets() - 1; b >= 0; --b)
    if (!buckets_[static_cast<std::size_t>(b)].started) start(b);
  auto last_move = Clock::now();
  for (;;) {
    const std::uint32_t ticket = signals_.ticket();
    bool exchanging = false;
    {
      const auto lock = background_.lock();
      if (all_done()) return;
      if (advance()) {
        last_move = Clock::now();
        continue;
      }
      exchanging = !peers_.idle();
      give_up_after(seconds_since(last_move));
    }
    const auto asleep = Clock::now();
    // MPI moves only while it is called, so while it has something to move the sleep is short.
    if (!exchanging)
      signals_.sleep(ticket, kLongSleep_s);
    else if (options_.spin_s > 0)
      ::sched_yield();
    else
      signals_.sleep(ticket, kShortSleep_s);
    wait_s_ += seconds_since(asleep);
  }
}

void Exchange::give_up_after(double still_s) const {
  if (still_s <= options_.timeout_s) return;
  std::string who;
  for (int b = 0; b < num_buckets() && who.empty(); ++b) who = signals_.missing(b, step_ + 1);
  throw StallError("the gradient exchange did not move for " + std::to_string(static_cast<int>(options_.timeout_s)) +
                   " s, waiting for " + (who.empty() ? absent_nodes() : "data rank(s) " + who + " of this node"));
}

void Exchange::publish() {
  {
    const auto lock = background_.lock();
    ++step_;
    for (Bucket& bucket : buckets_) {
      bucket.state = State::idle;
      bucket.started = false;
    }
    next_ = num_buckets() - 1;
  }
  signals_.set(num_buckets(), step_);
  const auto asleep = Clock::now();
  signals_.wait(num_buckets(), step_, options_.timeout_s, "the updated weights");
  wait_s_ += seconds_since(asleep);
}

// Whether a bucket was started that is not done.
bool Exchange::busy() const {
  return std::any_of(buckets_.begin(), buckets_.end(),
                     [](const Bucket& b) { return b.started && b.state != State::done; });
}

bool Exchange::all_done() const {
  return std::all_of(buckets_.begin(), buckets_.end(), [](const Bucket& b) { return b.state == State::done; });
}

std::string Exchange::absent_nodes() const {
  std::string names;
  for (const int peer : peers_.missing()) names += (names.empty() ? "" : ", ") + std::to_string(peer);
  return names.empty() ? "another node" : "data node(s) " + names;
}

void Exchange::set_codec(Codec codec) {
  const auto lock = background_.lock();
  if (std::any_of(buckets_.begin(), buckets_.end(), [](const Bucket& b) { return b.started.load(); }))
    throw std::logic_error("the codec cannot change within a step");
  block_values(codec);
  options_.codec = codec;
}

void Exchange::set_share(double share) {
  const auto lock = background_.lock();
  if (!(share > 0.0 && share <= 1.0)) throw std::invalid_argument("expected a share in (0, 1]");
  if (std::any_of(buckets_.begin(), buckets_.end(), [](const Bucket& b) { return b.started.load(); }))
    throw std::logic_error("the share cannot change within a step");
  options_.share = share;
}

void Exchange::set_in_node_from(std::int64_t first) {
  const auto lock = background_.lock();
  if (std::any_of(buckets_.begin(), buckets_.end(), [](const Bucket& b) { return b.started.load(); }))
    throw std::logic_error("what stays in the node cannot change within a step");
  options_.in_node_from = first;
}

bool Exchange::done(int index) {
  const auto lock = background_.lock();
  return buckets_.at(static_cast<std::size_t>(index)).state == State::done;
}

bool Exchange::advance(int index) {
  Bucket& bucket = buckets_[static_cast<std::size_t>(index)];
  switch (bucket.state) {
    case State::done:
      return false;
    case State::idle:
      if (!bucket.started) return false;
      if (bucket.slice.size() > 0) {
        if (!signals_.all_reached(index, step_ + 1)) return false;
        sum_in_node(bucket);
      }
      bucket.state = State::summed;
      return true;
    case State::summed:
      // All nodes must exchange buckets in one order, so a bucket waits for those behind it.
      if (index != next_) return false;
      --next_;
      if (bucket.whole.lo >= options_.in_node_from) {
        bucket.state = State::done;
        return true;
      }
      bucket.ticket = peers_.submit(slice(bucket));
      bucket.state = State::exchanging;
      return true;
    case State::exchanging:
      if (!peers_.done(bucket.ticket)) return false;
      bucket.state = State::done;
      return true;
  }
  return false;
}

PeerSlice Exchange::slice(const Bucket& bucket) const {
  PeerSlice slice;
  slice.values = grads_[static_cast<std::size_t>(options_.rank)] + bucket.slice.lo;
  slice.size = bucket.slice.size();
  slice.codec = bucket.whole.hi <= options_.exact_until ? Codec::exact : options_.codec;
  if (options_.residual != nullptr) slice.residual = options_.residual + bucket.slice.lo;
  slice.gather = !options_.own_pieces;
  slice.share = options_.share;
  return slice;
}

void Exchange::sum_in_node(Bucket& bucket) {
  // Nobody else reads this range of the own buffer: every rank reads the others' buffers in the
  // slices it owns itself. So the sum may be written there.
  sum_slices(grads_, bucket.slice.lo, bucket.slice.hi, grads_[static_cast<std::size_t>(options_.rank)]);
  reduced_values_ += bucket.slice.size();
}

ExchangeStats Exchange::stats() {
  const auto lock = background_.lock();
  return {peers_.sent_nbytes(), reduced_values_, wait_s_};
}

}  // namespace lepton
