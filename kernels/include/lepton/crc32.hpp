// CRC-32 (ISO-HDLC, the one of zlib, PNG and Ethernet): polynomial 0x04C11DB7, bits reflected.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lepton {

// Returns the CRC-32 of bytes that follow others whose CRC-32 is `before`, 0 if there are none. The same number on
// every machine.
std::uint32_t crc32(std::uint32_t before, const unsigned char* data, std::size_t size);

// The same by tables alone, which runs everywhere.
std::uint32_t crc32_by_tables(std::uint32_t before, const unsigned char* data, std::size_t size);

}  // namespace lepton
