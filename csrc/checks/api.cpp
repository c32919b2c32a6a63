// The C functions that are the same in every library: the version of the interface, and the last message.
#include <stdarg.h>
#include <stdio.h>

#include "check.h"

namespace nvsubq {
namespace {

thread_local char error_text[256] = "";

}  // namespace

int fail(int status, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(error_text, sizeof error_text, format, values);
  va_end(values);
  return status;
}

}  // namespace nvsubq

extern "C" {

uint32_t nvsubq_abi(void) { return NVSUBQ_ABI; }

const char* nvsubq_last_error(void) { return nvsubq::error_text; }

}  // extern "C"
