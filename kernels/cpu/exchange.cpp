#include "lepton/exchange.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <string>

#include "lepton/sum.hpp"

namespace lepton {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw std::runtime_error(std::string(call) + " failed: " + std::string(text, static_cast<std::size_t>(length)));
}

constexpr int kTagsPerBucket = 2;        // one a phase
constexpr double kLongSleep_s = 0.1;     // any change wakes the sleeper; this bounds a lost wake-up
constexpr double kShortSleep_s = 50e-6;  // about the time of a message

}  // namespace

Extent part(Extent whole, int parts, int index, std::int64_t block) {
  const std::int64_t first = whole.lo / block;
  const std::int64_t blocks = (whole.hi + block - 1) / block - first;
  const auto bound = [&](std::int64_t i) {
    return std::clamp((first + blocks * i / parts) * block, whole.lo, whole.hi);
  };
  return whole.size() == 0 ? Extent{whole.lo, whole.lo} : Extent{bound(index), bound(index + 1)};
}

std::size_t Exchange::signal_nbytes(int num_ranks, int num_buckets) {
  return Signals::nbytes(num_ranks, num_buckets + 1);
}

Exchange::Exchange(std::vector<float*> grads, std::byte* signal_memory, std::size_t signal_nbytes, MPI_Comm peers,
                   std::vector<std::int64_t> bounds, ExchangeOptions options)
    : grads_(std::move(grads)),
      signals_(signal_memory, signal_nbytes, static_cast<int>(grads_.size()), static_cast<int>(bounds.size()),
               options.rank, options.spin_s),
      peers_(peers),
      options_(options) {
  if (bounds.empty() || bounds.front() != 0 || !std::is_sorted(bounds.begin(), bounds.end()))
    throw std::invalid_argument("bucket bounds must start at 0 and grow");
  for (std::size_t i = 1; i + 1 < bounds.size(); ++i)
    if (bounds[i] % kBlock != 0) throw std::invalid_argument("inner bucket bounds must be multiples of 256");
  if (options_.num_owners < 1 || options_.num_owners > static_cast<int>(grads_.size()))
    throw std::invalid_argument("the number of owners must lie between 1 and the ranks of the node");
  const bool owner = options_.rank < options_.num_owners;
  if (owner && peers_ != MPI_COMM_NULL) {
    check(MPI_Comm_size(peers_, &num_peers_), "MPI_Comm_size");
    check(MPI_Comm_rank(peers_, &peer_), "MPI_Comm_rank");
    check(MPI_Comm_set_errhandler(peers_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  buckets_.resize(bounds.size() - 1);
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    bucket.whole = {bounds[b], bounds[b + 1]};
    bucket.slice = owner ? part(bucket.whole, options_.num_owners, options_.rank, kBlock)
                         : Extent{bucket.whole.hi, bucket.whole.hi};
    if (num_peers_ == 1) continue;
    std::size_t longest = 0, total = 0;
    for (int p = 0; p < num_peers_; ++p) {
      const std::size_t nbytes = encoded_nbytes(options_.codec, static_cast<std::size_t>(piece(bucket, p).size()));
      longest = std::max(longest, nbytes);
      total += nbytes;
    }
    // Phase one receives as many payloads of the own piece as there are other peers; phase two one
    // payload of each peer's piece. Exact values are sent and received in place where they can be.
    bucket.incoming.resize(longest * static_cast<std::size_t>(num_peers_));
    if (options_.codec != Codec::exact) bucket.outgoing.resize(total + longest);
  }
}

Extent Exchange::owned(int bucket) const {
  const Bucket& b = buckets_[static_cast<std::size_t>(bucket)];
  return options_.own_pieces ? piece(b, peer_) : b.slice;
}

void Exchange::start(int index) {
  Bucket& bucket = buckets_.at(static_cast<std::size_t>(index));
  if (bucket.state != State::idle)
    throw std::logic_error("bucket " + std::to_string(index) + " was started twice in one step");
  bucket.state = State::started;
  signals_.set(index, step_ + 1);
  progress();
}

bool Exchange::progress() {
  bool moved = false;
  for (int b = 0; b < num_buckets(); ++b) moved |= advance(b);
  return moved;
}

void Exchange::finish() {
  for (int b = num_buckets() - 1; b >= 0; --b)
    if (buckets_[static_cast<std::size_t>(b)].state == State::idle) start(b);
  auto last_move = Clock::now();
  while (!all_done()) {
    const std::uint32_t ticket = signals_.ticket();
    if (progress()) {
      last_move = Clock::now();
      continue;
    }
    const auto asleep = Clock::now();
    // MPI moves only while it is called, so while it has something to move the sleep is short.
    if (!exchanging())
      signals_.sleep(ticket, kLongSleep_s);
    else if (options_.spin_s > 0)
      ::sched_yield();
    else
      signals_.sleep(ticket, kShortSleep_s);
    stats_.wait_s += seconds_since(asleep);
    if (seconds_since(last_move) > options_.timeout_s) {
      std::string who;
      for (int b = 0; b < num_buckets() && who.empty(); ++b) who = signals_.missing(b, step_ + 1);
      throw StallError("the gradient exchange did not move for " +
                       std::to_string(static_cast<int>(options_.timeout_s)) + " s, waiting for " +
                       (who.empty() ? "another node" : "data rank(s) " + who + " of this node"));
    }
  }
}

void Exchange::publish() {
  ++step_;
  for (Bucket& bucket : buckets_) bucket.state = State::idle;
  signals_.set(num_buckets(), step_);
  const auto asleep = Clock::now();
  signals_.wait(num_buckets(), step_, options_.timeout_s, "the updated weights");
  stats_.wait_s += seconds_since(asleep);
}

bool Exchange::all_done() const {
  return std::all_of(buckets_.begin(), buckets_.end(), [](const Bucket& b) { return b.state == State::done; });
}

bool Exchange::exchanging() const {
  return std::any_of(buckets_.begin(), buckets_.end(),
                     [](const Bucket& b) { return b.state == State::scattering || b.state == State::gathering; });
}

bool Exchange::advance(int index) {
  Bucket& bucket = buckets_[static_cast<std::size_t>(index)];
  switch (bucket.state) {
    case State::idle:
    case State::done:
      return false;
    case State::started:
      if (bucket.slice.size() == 0) {
        bucket.state = State::done;
        return true;
      }
      if (!signals_.all_reached(index, step_ + 1)) return false;
      sum_in_node(bucket);
      bucket.state = State::done;
      if (num_peers_ > 1) scatter(index);
      return true;
    case State::scattering:
      if (!test(bucket)) return false;
      reduce_piece(index);
      if (options_.own_pieces)
        bucket.state = State::done;
      else
        gather(index);
      return true;
    case State::gathering:
      if (!test(bucket)) return false;
      decode_gathered(bucket);
      return true;
  }
  return false;
}

void Exchange::sum_in_node(Bucket& bucket) {
  // Nobody else reads this range of the own buffer: every rank reads the others' buffers in the
  // slices it owns itself. So the sum may be written there.
  sum_slices(grads_, bucket.slice.lo, bucket.slice.hi, grads_[static_cast<std::size_t>(options_.rank)]);
  stats_.reduced_values += bucket.slice.size();
}

Extent Exchange::piece(const Bucket& bucket, int peer) const { return part(bucket.slice, num_peers_, peer, kBlock); }

void Exchange::send(Bucket& bucket, const void* data, std::size_t nbytes, int peer, int tag) {
  if (nbytes == 0) return;
  bucket.requests.emplace_back();
  check(MPI_Isend(data, static_cast<int>(nbytes), MPI_BYTE, peer, tag, peers_, &bucket.requests.back()), "MPI_Isend");
  stats_.sent_nbytes += static_cast<std::int64_t>(nbytes);
}

void Exchange::receive(Bucket& bucket, void* data, std::size_t nbytes, int peer, int tag) {
  if (nbytes == 0) return;
  bucket.requests.emplace_back();
  check(MPI_Irecv(data, static_cast<int>(nbytes), MPI_BYTE, peer, tag, peers_, &bucket.requests.back()), "MPI_Irecv");
}

bool Exchange::test(Bucket& bucket) {
  int complete = 1;
  check(MPI_Testall(static_cast<int>(bucket.requests.size()), bucket.requests.data(), &complete, MPI_STATUSES_IGNORE),
        "MPI_Testall");
  if (complete) bucket.requests.clear();
  return complete != 0;
}

// Phase one: every peer gets its piece of this node's sum.
void Exchange::scatter(int index) {
  Bucket& bucket = buckets_[static_cast<std::size_t>(index)];
  float* const own = grads_[static_cast<std::size_t>(options_.rank)];
  const int tag = index * kTagsPerBucket;
  const std::size_t expected = encoded_nbytes(options_.codec, static_cast<std::size_t>(piece(bucket, peer_).size()));
  for (int p = 0; p < num_peers_; ++p)
    if (p != peer_) receive(bucket, bucket.incoming.data() + static_cast<std::size_t>(p) * expected, expected, p, tag);
  std::byte* out = bucket.outgoing.data();
  for (int p = 0; p < num_peers_; ++p) {
    const Extent theirs = piece(bucket, p);
    const auto n = static_cast<std::size_t>(theirs.size());
    const std::size_t nbytes = encoded_nbytes(options_.codec, n);
    if (p == peer_) continue;
    if (options_.codec == Codec::exact) {
      send(bucket, own + theirs.lo, nbytes, p, tag);
      continue;
    }
    encode(options_.codec, own + theirs.lo, n, out);
    send(bucket, out, nbytes, p, tag);
    out += nbytes;
  }
  bucket.state = State::scattering;
}

// The own piece is summed in node order.
void Exchange::reduce_piece(int index) {
  Bucket& bucket = buckets_[static_cast<std::size_t>(index)];
  const Extent mine = piece(bucket, peer_);
  const auto n = static_cast<std::size_t>(mine.size());
  float* const sum = grads_[static_cast<std::size_t>(options_.rank)] + mine.lo;
  add_payloads(options_.codec, bucket.incoming.data(), encoded_nbytes(options_.codec, n), num_peers_, peer_, n, sum);
}

// Phase two: the reduced piece is encoded once and given to all.
void Exchange::gather(int index) {
  Bucket& bucket = buckets_[static_cast<std::size_t>(index)];
  float* const own = grads_[static_cast<std::size_t>(options_.rank)];
  const int tag = index * kTagsPerBucket + 1;
  const Extent mine = piece(bucket, peer_);
  const auto n = static_cast<std::size_t>(mine.size());
  const std::size_t nbytes = encoded_nbytes(options_.codec, n);
  float* const sum = own + mine.lo;
  const std::byte* payload = reinterpret_cast<const std::byte*>(sum);
  if (options_.codec != Codec::exact) {
    std::byte* const encoded = bucket.outgoing.data() + (bucket.outgoing.size() - nbytes);
    encode(options_.codec, sum, n, encoded);
    decode(options_.codec, encoded, n, sum);  // the owner, too, continues with what was sent
    payload = encoded;
  }
  std::byte* in = bucket.incoming.data();
  for (int p = 0; p < num_peers_; ++p) {
    if (p == peer_) continue;
    const Extent theirs = piece(bucket, p);
    const std::size_t their_nbytes = encoded_nbytes(options_.codec, static_cast<std::size_t>(theirs.size()));
    if (options_.codec == Codec::exact) {
      receive(bucket, own + theirs.lo, their_nbytes, p, tag);
    } else {
      receive(bucket, in, their_nbytes, p, tag);
      in += their_nbytes;
    }
    send(bucket, payload, nbytes, p, tag);
  }
  bucket.state = State::gathering;
}

void Exchange::decode_gathered(Bucket& bucket) {
  bucket.state = State::done;
  if (options_.codec == Codec::exact) return;
  float* const own = grads_[static_cast<std::size_t>(options_.rank)];
  const std::byte* in = bucket.incoming.data();
  for (int p = 0; p < num_peers_; ++p) {
    if (p == peer_) continue;
    const Extent theirs = piece(bucket, p);
    const auto n = static_cast<std::size_t>(theirs.size());
    decode(options_.codec, in, n, own + theirs.lo);
    in += encoded_nbytes(options_.codec, n);
  }
}

}  // namespace lepton
