// What moves the bytes of ShmTransport: one batch over one link.
//
// Bytes are copied in steps that fit the first-level cache and hashed from their destination, so that each is fetched from memory once.
// Threads: the caller's.
#pragma once

#include <memory>
#include <span>

#include "transfer/shm/peer_link.h"
#include "transfer/transport.h"

namespace moonpool::transfer {

void shm_write(PeerLink& link, std::span<WriteOperation> operations, Deadline deadline);
void shm_write_in_place(PeerLink& link, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline);
void shm_read(const std::shared_ptr<PeerLink>& link, std::span<ReadOperation> operations, bool verify, Deadline deadline);
void shm_view(const std::shared_ptr<PeerLink>& link, std::span<ViewOperation> operations, bool verify, Deadline deadline);

}  // namespace moonpool::transfer
