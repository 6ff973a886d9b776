/*
 * Preloaded into DynamoDB Local by scripts/with-services. DynamoDB Local has no option for the address
 * it listens on, nor for the age at which it closes a shard of a stream (four hours). So it gets
 * loopback for any address, and a clock that a test can put forward.
 *
 * DYNAMODB_LOCAL_CLOCK names a file that holds one 64-bit integer of this machine's byte order: how
 * many seconds the clock is ahead. Written in place, it counts at once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)

static const _Atomic int64_t not_ahead;
static const _Atomic int64_t *ahead = &not_ahead;

__attribute__((constructor)) static void map_clock(void)
{
    const char *path = getenv("DYNAMODB_LOCAL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        perror("DYNAMODB_LOCAL_CLOCK");
        exit(1);
    }
    close(file);
    ahead = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int status = syscall(SYS_clock_gettime, clock, now);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC))
        now->tv_sec += *ahead;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    int status = clock_gettime(CLOCK_REALTIME, &precise);
    (void)zone;
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return status;
}

/*
 * The deadline is one of the clock above. A thread that waits for a time far ahead must see that the
 * clock was put forward: it waits a short while and then wakes for no reason, which POSIX allows.
 */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline)
{
    const int64_t longest = SECOND / 20;
    /* A condition does not tell its clock, but the monotonic one starts near zero at boot. */
    clockid_t clock = deadline->tv_sec > 1000000000 ? CLOCK_REALTIME : CLOCK_MONOTONIC;
    struct timespec now, until;
    clock_gettime(clock, &now);
    int64_t left = (deadline->tv_sec - now.tv_sec) * SECOND + deadline->tv_nsec - now.tv_nsec;
    int64_t wait = left < 0 ? 0 : left < longest ? left : longest;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &until);
    until.tv_sec += (until.tv_nsec + wait) / SECOND;
    until.tv_nsec = (until.tv_nsec + wait) % SECOND;
    int status = pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &until);
    return status == ETIMEDOUT && left > longest ? 0 : status;
}

int bind(int socket, const struct sockaddr *address, socklen_t length)
{
    struct sockaddr_in loopback;
    if (address->sa_family == AF_INET6) {
        /* Java is told to use IPv4 only. */
        errno = EADDRNOTAVAIL;
        return -1;
    }
    if (address->sa_family == AF_INET) {
        loopback = *(const struct sockaddr_in *)address;
        loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address = (const struct sockaddr *)&loopback;
    }
    return syscall(SYS_bind, socket, address, length);
}
