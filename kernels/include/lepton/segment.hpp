// A POSIX shared-memory segment: made by one process of a node, mapped by its neighbours.
#pragma once

#include <cstddef>
#include <string>

namespace lepton {

// Owns a mapping. The name is unlinked as soon as all have mapped it, so the memory frees itself
// when the last process ends, however it ends.
class Segment {
 public:
  // Makes a segment of zeros; throws std::system_error (ENOSPC where /dev/shm is too small:
  // pages are reserved here, so no later write can end in SIGBUS).
  static Segment create(const std::string& name, std::size_t nbytes);
  // Maps a segment that another process made.
  static Segment open(const std::string& name, std::size_t nbytes);
  // Private zeroed memory with the same interface, for nodes without usable shared memory.
  static Segment anonymous(std::size_t nbytes);

  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&&) = delete;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();

  // Removes the name; mappings stay. Safe to call twice and after another process did it.
  void unlink() noexcept;

  std::byte* data() const { return data_; }
  std::size_t nbytes() const { return nbytes_; }

 private:
  Segment(std::string name, std::byte* data, std::size_t nbytes);

  std::string name_;
  std::byte* data_;
  std::size_t nbytes_;
};

}  // namespace lepton
