// The result of every core call: a code and one sentence. Plain data, so that it crosses any
// border.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace masked_lstm {

// kDeviceError: what CUDA says, perhaps of an earlier asynchronous call.
enum class StatusCode { kOk = 0, kInvalidArgument, kUnsupported, kOutOfMemory, kDeviceError };

struct [[nodiscard]] Status {
  StatusCode code = StatusCode::kOk;
  char message[256] = {0};

  bool ok() const noexcept { return code == StatusCode::kOk; }
};

inline Status OkStatus() noexcept { return Status{}; }

__attribute__((format(printf, 2, 3))) inline Status Error(StatusCode code, const char* format,
                                                          ...) noexcept {
  Status status;
  status.code = code;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.message, sizeof(status.message), format, arguments);
  va_end(arguments);
  return status;
}

#define MASKED_LSTM_RETURN_IF_ERROR(expression)        \
  do {                                                 \
    const ::masked_lstm::Status status = (expression); \
    if (!status.ok()) return status;                   \
  } while (false)

}  // namespace masked_lstm
