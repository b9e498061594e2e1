// The two-phase sum (reduce-scatter, all-gather) of equal slices between nodes, exact or compressed, in a pipeline of
// chunks: while one chunk travels, others are encoded and decoded. The core of both the trainer's exchange and the
// all-reduce that is usable alone.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "lepton/codec.hpp"
#include "lepton/extent.hpp"
#include "lepton/peer_messages.hpp"

namespace lepton {

// A run of values to sum over the peers, in place.
struct PeerSlice {
  float* values = nullptr;     // what this peer adds on entry, the sum over all on return
  std::int64_t size = 0;       // equal on all peers
  Codec codec = Codec::exact;  // equal on all peers
  // Error feedback, or null: what was not sent yet. A peer keeps the error of what it sends in the pieces of others,
  // and that of the sum it hands out in its own piece, so the sum of this array over the peers is what is still owed.
  float* residual = nullptr;
  // False: a peer ends with the sum of its own piece only, which is not encoded again.
  bool gather = true;
  double share = 1.0;  // of the values that topk sends; equal on all peers
};

// How a pipeline is cut.
struct PipelineOptions {
  std::int64_t chunk_values = 1 << 18;  // rounded up to whole codec blocks
  int depth = 4;                        // chunks in flight
  std::int64_t cut_values = 64;         // pieces begin at multiples of this, and of the codec's block
  // Longest MPI message; 0: MPI's own limit. Below Open MPI's eager limit for TCP (64 KiB with its header) a message
  // needs no answer before it may go: at 1 Gbit/s long messages filled 70% of the link, these nearly all of it.
  std::int64_t message_nbytes = 60000;
};

// Sums slices over the ranks of a communicator. Not thread-safe.
//
// All peers submit the same slices in the same order. Sums run in peer order in fp32; the piece of a peer is encoded
// once, and everybody, its owner included, goes on with what it decodes to, so all end with the same bytes.
class PeerExchange {
 public:
  // MPI_COMM_NULL: no peers, and whatever is submitted is complete.
  PeerExchange(MPI_Comm peers, PipelineOptions options);
  ~PeerExchange();
  PeerExchange(const PeerExchange&) = delete;
  PeerExchange& operator=(const PeerExchange&) = delete;

  // Queues a slice and returns its ticket. Memory must stay valid until the ticket is done.
  std::uint64_t submit(const PeerSlice& slice);
  // Does what can be done without waiting; true if anything was.
  bool progress();
  bool done(std::uint64_t ticket) const { return completed_ >= ticket; }
  bool idle() const { return waiting_.empty() && completed_ == admitted_; }
  // The peers whose payloads the oldest chunk in flight lacks.
  std::vector<int> missing() const;

  // What of a slice of `size` values this peer sums; the slice must be one chunk.
  Extent own_piece(std::int64_t size, Codec codec) const;

  int num_peers() const { return num_peers_; }
  int peer() const { return peer_; }
  std::int64_t sent_nbytes() const { return messages_.sent_nbytes(); }

 private:
  enum class State { free, scattering, gathering, done };

  // A chunk on its way. Arrivals lie at the distance to the peer that they come from, counted backwards.
  struct Slot {
    PeerSlice chunk;
    State state = State::free;
    std::uint64_t sequence = 0;
    std::vector<Arrival> scattered, gathered;
    Requests sends;
    std::vector<std::byte> outgoing;          // payloads for the peers, then the reduced own piece
    std::vector<std::byte> incoming;          // phase one: the peers' payloads of the own piece
    std::vector<std::byte> incoming_reduced;  // phase two: the payloads of the peers' pieces
  };
  struct Piece {
    std::int64_t lo, size;
    std::size_t nbytes;  // of its payload, at most
  };

  bool advance(Slot& slot);
  void begin(Slot& slot);
  void scatter(Slot& slot);
  void reduce(Slot& slot);
  void add_in_peer_order(Slot& slot, const Piece& mine);
  bool take_gathered(Slot& slot);
  int tag(const Slot& slot, int phase) const;
  // Adds what is owed to values that travel exactly, or not at all.
  static void settle(const PeerSlice& chunk);
  Piece piece(const PeerSlice& chunk, int peer) const;
  static std::size_t write(const PeerSlice& chunk, const Piece& piece, std::byte* out);
  int follower(int distance) const { return (peer_ + distance) % num_peers_; }
  int leader(int distance) const { return (peer_ - distance + num_peers_) % num_peers_; }
  void send(Slot& slot, const void* data, std::size_t nbytes, int peer, int phase);
  void receive(const Slot& slot, Arrival& arrival, void* data, std::size_t nbytes, int distance, int phase);
  bool all_arrived(std::vector<Arrival>& arrivals);

  MPI_Comm peers_;
  int num_peers_ = 1;
  int peer_ = 0;
  PipelineOptions options_;
  PeerMessages messages_;
  std::vector<Slot> slots_;
  std::deque<PeerSlice> waiting_;
  std::uint64_t submitted_ = 0, admitted_ = 0, completed_ = 0;  // chunks
  std::vector<float> total_;
};

}  // namespace lepton
