// The Asio vocabulary of the gateway, in one place: which executor, which coroutine, which socket.
//
// Model: one io_context per thread, and everything that belongs to a request (client socket, upstream socket, timers, coroutine)
// lives on the context that accepted the client. So there are no strands and no locks on the path of a request, and a pooled
// upstream connection is handed from one request to the next without crossing a thread. The price: a pool of connections per
// thread, and a client that is busy stays on its thread. The executor is a concrete type (no any_io_executor), which saves an
// allocation and an indirect call per operation.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>

namespace moonpool::gateway {

namespace asio = boost::asio;

using Executor = asio::io_context::executor_type;
template <typename T>
using Task = asio::awaitable<T, Executor>;
using Socket = asio::basic_stream_socket<asio::ip::tcp, Executor>;
using Timer = asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>, Executor>;
using Endpoint = asio::ip::tcp::endpoint;

// co_await an operation with this and its error comes back as a value: auto [error, ...] = co_await ...
// g++ 12 mishandles temporaries that are made conditionally (ternary, &&) within a co_await expression: keep those in locals.
inline constexpr asio::as_tuple_t<asio::use_awaitable_t<Executor>> kAwait{};

}  // namespace moonpool::gateway
