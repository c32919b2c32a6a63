// Calls the C interface as a program without Python and torch does, at every instruction set of this machine, and
// compares with plain loops in fp64. `overrun` writes past its memory instead, to show that a sanitizer is at work.
#include "harness.h"
#include "layout.h"

int failures = 0;

void check_scan(int64_t level);
void check_conv(int64_t level);
void check_ssd(int64_t level);
void overrun();

int main(int argc, char** argv) {
  if (argc > 1 && !strcmp(argv[1], "overrun")) {
    overrun();
    printf("nothing stopped a write past the end\n");
    return 0;
  }
  if (nvsubq_abi() != NVSUBQ_ABI) {
    printf("the library speaks version %u of the interface, the header %u\n", nvsubq_abi(), NVSUBQ_ABI);
    return 1;
  }
  printf("%s:", nvsubq_build_info());
  for (int64_t level = NVSUBQ_LEVEL_BASELINE; level <= NVSUBQ_LEVEL_AVX512; ++level) {
    if (!nvsubq_level_name(level)) continue;
    check_scan(level);
    check_conv(level);
    check_ssd(level);
    printf(" %s", nvsubq_level_name(level));
  }
  printf(failures ? ", %d values are wrong\n" : ", all is well\n", failures);
  return failures > 0;
}
