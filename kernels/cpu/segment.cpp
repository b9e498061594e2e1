#include "lepton/segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace lepton {
namespace {

[[noreturn]] void fail(int code, const std::string& what) {
  throw std::system_error(code, std::generic_category(), what);
}

// Closes a descriptor at the end of its scope.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

std::byte* map(int fd, std::size_t nbytes, int flags, const std::string& what) {
  void* const address = ::mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (address == MAP_FAILED) fail(errno, what);
#ifdef MADV_HUGEPAGE
  ::madvise(address, nbytes, MADV_HUGEPAGE);  // a hint: fewer page faults where the kernel grants it
#endif
  return static_cast<std::byte*>(address);
}

}  // namespace

Segment::Segment(std::string name, std::byte* data, std::size_t nbytes)
    : name_(std::move(name)), data_(data), nbytes_(nbytes) {}

Segment::Segment(Segment&& other) noexcept
    : name_(std::exchange(other.name_, {})),
      data_(std::exchange(other.data_, nullptr)),
      nbytes_(std::exchange(other.nbytes_, 0)) {}

Segment::~Segment() {
  if (data_ != nullptr) ::munmap(data_, nbytes_);
}

Segment Segment::create(const std::string& name, std::size_t nbytes) {
  const Descriptor file{::shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600)};
  if (file.fd < 0) fail(errno, "cannot create the shared-memory segment " + name);
  int code = ::ftruncate(file.fd, static_cast<off_t>(nbytes)) == 0 ? 0 : errno;
  if (code == 0) code = ::posix_fallocate(file.fd, 0, static_cast<off_t>(nbytes));
  if (code != 0) {
    ::shm_unlink(name.c_str());
    fail(code, "cannot reserve " + std::to_string(nbytes) + " bytes of shared memory");
  }
  try {
    return Segment(name, map(file.fd, nbytes, MAP_SHARED, "cannot map " + name), nbytes);
  } catch (...) {
    ::shm_unlink(name.c_str());
    throw;
  }
}

Segment Segment::open(const std::string& name, std::size_t nbytes) {
  const Descriptor file{::shm_open(name.c_str(), O_RDWR, 0600)};
  if (file.fd < 0) fail(errno, "cannot open the shared-memory segment " + name);
  return Segment({}, map(file.fd, nbytes, MAP_SHARED, "cannot map " + name), nbytes);
}

Segment Segment::anonymous(std::size_t nbytes) {
  return Segment({}, map(-1, nbytes, MAP_PRIVATE | MAP_ANONYMOUS, "cannot allocate memory"), nbytes);
}

void Segment::unlink() noexcept {
  if (!name_.empty()) ::shm_unlink(name_.c_str());
  name_.clear();
}

}  // namespace lepton
