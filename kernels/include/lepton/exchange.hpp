// The gradient exchange: exact sums inside a node by direct reads of the neighbours' memory, then a
// two-phase (reduce-scatter, all-gather) exchange between nodes, exact or compressed.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "lepton/codec.hpp"
#include "lepton/extent.hpp"
#include "lepton/peer_exchange.hpp"
#include "lepton/progress_thread.hpp"
#include "lepton/signals.hpp"

namespace lepton {

struct ExchangeOptions {
  int rank = 0;        // this rank among the ranks of the node that share the model part
  int num_owners = 1;  // the first this many ranks of every node own slices (nodes may differ in ranks)
  Codec codec = Codec::exact;
  std::int64_t exact_until = 0;  // buckets that end at or before this element are exact whatever the codec
  // Buckets that begin at or after this element are summed inside the node only.
  std::int64_t in_node_from = std::numeric_limits<std::int64_t>::max();
  bool own_pieces = false;    // each node owns one piece of a slice alone: reduce-scatter, and nothing is gathered
  float* residual = nullptr;  // error feedback, or null: as long as the gradients, used at the slices of this rank
  double share = 1.0;         // of the values that topk sends
  double timeout_s = 300;
  double spin_s = 0;
  bool background = false;  // a thread makes progress between start and finish; needs MPI_THREAD_MULTIPLE
};

struct ExchangeStats {
  std::int64_t sent_nbytes = 0;     // between nodes, this rank
  std::int64_t reduced_values = 0;  // summed inside the node, this rank
  double wait_s = 0;                // asleep in finish() and publish()
};

// One rank's part in the exchange of the gradients of one model part (one stage, one shard).
//
// A step is: start(bucket) for each bucket as its gradients become final, finish(), then the
// owners update their slices of the shared values, then publish(). After finish() the reduced
// gradient of the slices this rank owns lies in its own gradient buffer; the rest of that buffer
// is undefined. Sums run in rank order, inside a node and over nodes, so a rerun gives the same
// bits, and every node ends with the same bytes, since all decode the same payloads. A thread in the
// background changes when things are done, not what. With
// own_pieces a rank ends with the sum of its node's piece of its slices, which was not encoded again;
// the caller brings the updated values of other nodes itself.
class Exchange {
 public:
  // grads: one pointer per rank of the node, readable here; [options.rank] is this rank's own.
  // peers: the ranks with the same options.rank on every node, in node order; only used by owners.
  // bounds: bucket b is [bounds[b], bounds[b+1]); inner bounds are multiples of kBlock.
  Exchange(std::vector<float*> grads, std::byte* signal_memory, std::size_t signal_nbytes, MPI_Comm peers,
           std::vector<std::int64_t> bounds, ExchangeOptions options);

  static std::size_t signal_nbytes(int num_ranks, int num_buckets);

  // Says that this rank's gradients of a bucket are final for this step, and moves others along unless a thread does.
  void start(int bucket);
  // Does whatever can be done without waiting; true if anything was.
  bool progress();
  // Blocks until every slice that this rank owns is reduced. Buckets not yet started are started.
  void finish();
  // Blocks until all ranks of the node have called it: updated values may be read, gradients rewritten.
  void publish();

  // Takes another codec from the next step on; all ranks must, together.
  void set_codec(Codec codec);
  // Sends another share of the values from the next step on, where topk travels; all ranks must, together.
  void set_share(double share);

  // From the next step on, buckets that begin at or after this element are summed inside the node only; alike on all
  // ranks.
  void set_in_node_from(std::int64_t first);
  // Whether the own slice of a bucket is reduced.
  bool done(int bucket);

  int num_buckets() const { return static_cast<int>(buckets_.size()); }
  // The slice of a bucket that this rank owns, or its node's piece of it.
  Extent owned(int bucket) const;
  ExchangeStats stats();

  static constexpr std::int64_t kBlock = kMaxBlock;  // the longest codec block

 private:
  enum class State { idle, summed, exchanging, done };

  struct Bucket {
    Extent whole;
    Extent slice;
    std::atomic<bool> started{false};  // the only member that `start` changes, which does not wait for the thread
    State state = State::idle;
    std::uint64_t ticket = 0;
  };

  static PipelineOptions pipeline();
  bool advance();
  bool advance(int index);
  void sum_in_node(Bucket& bucket);
  PeerSlice slice(const Bucket& bucket) const;
  bool all_done() const;
  bool busy() const;
  void give_up_after(double still_s) const;
  std::string absent_nodes() const;

  std::vector<float*> grads_;
  Signals signals_;
  PeerExchange peers_;
  std::vector<Bucket> buckets_;
  ExchangeOptions options_;
  int next_ = -1;  // the bucket that is exchanged with other nodes next
  std::uint32_t step_ = 0;
  std::int64_t reduced_values_ = 0;
  double wait_s_ = 0;
  ProgressThread background_;  // the last, since it uses the others
};

}  // namespace lepton
