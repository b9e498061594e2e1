// The gradient exchange: exact sums inside a node by direct reads of the neighbours' memory, then a
// two-phase (reduce-scatter, all-gather) exchange between nodes, exact or compressed.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lepton/codec.hpp"
#include "lepton/signals.hpp"

namespace lepton {

// A half-open range of elements of the flat gradient buffer.
struct Extent {
  std::int64_t lo;
  std::int64_t hi;
  std::int64_t size() const { return hi - lo; }
};

// Part `index` of `parts` of an extent, cut at global multiples of `block` elements; parts may be empty.
Extent part(Extent whole, int parts, int index, std::int64_t block);

struct ExchangeOptions {
  int rank = 0;        // this rank among the ranks of the node that share the model part
  int num_owners = 1;  // the first this many ranks of every node own slices (nodes may differ in ranks)
  Codec codec = Codec::exact;
  bool own_pieces = false;  // each node owns one piece of a slice alone: reduce-scatter, and nothing is gathered
  double timeout_s = 300;
  double spin_s = 0;
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
// bits, and every node ends with the same bytes, since all decode the same payloads. With
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

  // Says that this rank's gradients of a bucket are final for this step, and moves others along.
  void start(int bucket);
  // Does whatever can be done without waiting; true if anything was.
  bool progress();
  // Blocks until every slice that this rank owns is reduced. Buckets not yet started are started.
  void finish();
  // Blocks until all ranks of the node have called it: updated values may be read, gradients rewritten.
  void publish();

  int num_buckets() const { return static_cast<int>(buckets_.size()); }
  // The slice of a bucket that this rank owns, or its node's piece of it.
  Extent owned(int bucket) const;
  const ExchangeStats& stats() const { return stats_; }

  static constexpr std::int64_t kBlock = 256;  // the longest codec block

 private:
  enum class State { idle, started, scattering, gathering, done };

  struct Bucket {
    Extent whole;
    Extent slice;
    State state = State::idle;
    std::vector<MPI_Request> requests;
    std::vector<std::byte> outgoing;  // encoded: one payload per peer, then the own reduced payload
    std::vector<std::byte> incoming;  // one payload per peer, sized for either phase
  };

  bool advance(int index);
  void sum_in_node(Bucket& bucket);
  void scatter(int index);
  void reduce_piece(int index);
  void gather(int index);
  void decode_gathered(Bucket& bucket);
  Extent piece(const Bucket& bucket, int peer) const;
  bool test(Bucket& bucket);
  void send(Bucket& bucket, const void* data, std::size_t nbytes, int peer, int tag);
  void receive(Bucket& bucket, void* data, std::size_t nbytes, int peer, int tag);
  bool all_done() const;
  bool exchanging() const;

  std::vector<float*> grads_;
  Signals signals_;
  MPI_Comm peers_;
  int num_peers_ = 1;
  int peer_ = 0;
  std::vector<Bucket> buckets_;
  ExchangeOptions options_;
  std::uint32_t step_ = 0;
  ExchangeStats stats_;
};

}  // namespace lepton
