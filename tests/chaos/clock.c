/* Preloaded, this puts the wall clock of a process by the seconds in the file CHAOS_CLOCK, as somebody who sets a machine's
   clock does: what has passed is still measured right, files keep their times, and who waits is not woken. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

#define REAL(function) ((__typeof__(&function))dlsym(RTLD_NEXT, #function))

static int (*real_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void find(void) { real_gettime = REAL(clock_gettime); }

static time_t ahead(void) {
    static __thread time_t seconds, looked;
    struct timespec now;
    if (!real_gettime) find();
    real_gettime(CLOCK_MONOTONIC, &now);
    if (looked == now.tv_sec) return seconds;
    looked = now.tv_sec;
    FILE *file = getenv("CHAOS_CLOCK") ? fopen(getenv("CHAOS_CLOCK"), "r") : NULL;
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_gettime) find();
    int failed = real_gettime(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}

/* The system's own clock ends waits. Deadlines by the other clock, of seconds since the start, are far below a billion. */
static struct timespec by_system(const struct timespec *deadline) {
    struct timespec moved = *deadline;
    if (moved.tv_sec > 1000000000) moved.tv_sec -= ahead();
    return moved;
}

int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *deadline) {
    struct timespec moved = by_system(deadline);
    return REAL(pthread_cond_timedwait)(c, m, &moved);
}

int pthread_cond_clockwait(pthread_cond_t *c, pthread_mutex_t *m, clockid_t clock, const struct timespec *deadline) {
    struct timespec moved = by_system(deadline);
    return REAL(pthread_cond_clockwait)(c, m, clock, &moved);
}

int pthread_mutex_timedlock(pthread_mutex_t *m, const struct timespec *deadline) {
    struct timespec moved = by_system(deadline);
    return REAL(pthread_mutex_timedlock)(m, &moved);
}

int sem_timedwait(sem_t *s, const struct timespec *deadline) {
    struct timespec moved = by_system(deadline);
    return REAL(sem_timedwait)(s, &moved);
}

int sem_clockwait(sem_t *s, clockid_t clock, const struct timespec *deadline) {
    struct timespec moved = by_system(deadline);
    return REAL(sem_clockwait)(s, clock, &moved);
}
