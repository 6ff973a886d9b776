/*
 * Preloaded into a program under test: its clock of the day is as far ahead as the file SOAK_CLOCK
 * says, one 64-bit integer of this machine's byte order, in seconds. Written in place, it counts at
 * once. Its monotonic clock stays: setting a machine's clock does not touch it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const _Atomic int64_t not_ahead;
static const _Atomic int64_t *ahead = &not_ahead;

__attribute__((constructor)) static void map_clock(void)
{
    const char *path = getenv("SOAK_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        perror("SOAK_CLOCK");
        exit(1);
    }
    close(file);
    ahead = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int status = syscall(SYS_clock_gettime, clock, now);
    if (status == 0 && clock == CLOCK_REALTIME)
        now->tv_sec += *ahead;
    return status;
}
