// Payloads as messages between peers: long ones in several, and such whose length only the sender knows.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lepton {

using Requests = std::vector<MPI_Request>;

// True once all requests are complete; they are gone then.
bool test_all(Requests& requests);

// A payload that comes from a peer.
struct Arrival {
  Requests requests;  // none left: it is complete
  std::byte* data = nullptr;
  std::size_t room = 0;
  std::size_t nbytes = 0;  // of the payload, once it is complete
  bool is_fixed = true;    // whether it fills the room
  int peer = 0, tag = 0;
};

// Sends and receives over one communicator. A payload goes as messages of the longest length and a last one of what is
// left; where the receiver does not know how many, one that is shorter than the longest ends it, if need be an empty
// one.
class PeerMessages {
 public:
  // message_nbytes: the longest message; 0: MPI's own limit.
  PeerMessages(MPI_Comm peers, std::int64_t message_nbytes);

  // Starts to send; the memory must stay valid until the requests, which are added to `sends`, are complete.
  void send(Requests& sends, const void* data, std::size_t nbytes, bool is_fixed, int peer, int tag);
  // Starts to receive a payload of exactly, or if it is not fixed of at most, `nbytes` bytes. None comes for 0.
  void expect(Arrival& arrival, void* data, std::size_t nbytes, bool is_fixed, int peer, int tag);
  // Whether a payload is complete.
  bool arrived(Arrival& arrival);

  std::int64_t sent_nbytes() const { return sent_nbytes_; }

 private:
  void receive_next(Arrival& arrival);

  MPI_Comm peers_;
  std::size_t longest_;
  std::int64_t sent_nbytes_ = 0;
};

}  // namespace lepton
