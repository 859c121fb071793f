/* Join TAP devices to a network whose links have a delay and a rate, as a kernel with netem would.

   switch CONTROL BUFFER SLACK PORT...      PORT is NAME:DELAY:RATE:FORWARDS

   Each port is a TAP device, made in the caller's network namespace and meant to be moved into
   another. Frames go to the port of their address, once learned. A frame takes DELAY nanoseconds
   between its device and the switch, in either direction, and that part of a second which RATE
   bytes a second make of it; 0 is without limit. On the way are FORWARDS routers, whose other links
   have the same rate: each receives a packet whole before it sends it on. What would wait for more
   than BUFFER bytes is dropped. The commands that CONTROL, a datagram socket, takes are in answer().

   A sleeping process is woken late. How late is measured at each timer, and slept less by. What is due within SLACK nanoseconds is sent
   at once, as sleeping that short costs more than it is worth.

   Devices hand over TCP segments of up to 64 KiB, as to a network card that cuts them into packets
   itself. Such a frame counts as its packets: it goes on to the next link when its first packet
   would, and is delivered when its last would. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef int64_t ns_t;

enum {
    MAX_PORTS = 256,
    MAX_FRAME = 65536 + 128,
    BURST = 32,               /* frames read from one port before the clock is looked at again */
    MAC_SLOTS = 4096,         /* a power of two */
    PRIORITY = 50,            /* of SCHED_FIFO; probes of the self-test take less */
};
static const int64_t MAX_MEMORY = 512 << 20; /* bytes on the way; links without a rate have no buffer */
static const ns_t MAX_WAKING = 200000;
static const ns_t NEVER = INT64_MAX;

typedef struct frame {
    struct frame *next;
    int port;         /* where it came from */
    ns_t first, last; /* when its first and its last packet are at the end of this link */
    int64_t wire;     /* bytes of its packets, Ethernet headers included */
    int64_t packet;   /* bytes of its largest packet */
    size_t size;
    unsigned char data[]; /* struct virtio_net_hdr, then the Ethernet frame */
} frame_t;

typedef struct {
    frame_t *head, *tail;
    ns_t free;    /* when the link has sent what it was given */
    ns_t latest;  /* of the frames in the queue: none overtakes another */
    int64_t rate; /* bytes a second, 0 without limit */
    int64_t frames, bytes, dropped;
} link_t;

typedef struct {
    char name[IFNAMSIZ];
    int fd, up, forwards;
    ns_t delay;
    link_t in, out; /* from the device, to the device */
} port_t;

static port_t ports[MAX_PORTS];
static struct pollfd polled[MAX_PORTS + 1];
static int count;
static int64_t buffer_bytes, memory_used;
static ns_t slack, waking, shortest; /* woken so late; the shortest delay of all ports */
static struct { int port; unsigned char mac[6]; } learned[MAC_SLOTS];
static struct { int64_t frames; ns_t sum, max; } late;

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static ns_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static ns_t later(ns_t a, ns_t b) { return a > b ? a : b; }

static ns_t duration(const link_t *link, int64_t bytes) {
    return link->rate ? bytes * 1000000000LL / link->rate : 0;
}

/* The bytes of a frame's packets and of the largest of them. */
static void measure(frame_t *f) {
    struct virtio_net_hdr header;
    memcpy(&header, f->data, sizeof header);
    const unsigned char *ethernet = f->data + sizeof header;
    f->wire = f->packet = f->size - sizeof header;
    if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE || !header.gso_size) return;
    int64_t headers = header.csum_start + (ethernet[header.csum_start + 12] >> 4) * 4;
    int64_t payload = f->wire - headers;
    int64_t packets = (payload + header.gso_size - 1) / header.gso_size;
    if (payload <= 0) return;
    f->wire += (packets - 1) * headers;
    f->packet = headers + header.gso_size;
}

/* Where an address is in the table, or would be. */
static int slot(const unsigned char *mac) {
    uint32_t h = 2166136261u;
    for (int i = 0; i < 6; i++) h = (h ^ mac[i]) * 16777619u;
    for (int i = 0; i < MAC_SLOTS; i++) {
        int s = (h + i) & (MAC_SLOTS - 1);
        if (learned[s].port < 0 || !memcmp(learned[s].mac, mac, 6)) return s;
    }
    return -1; /* full: whoever is not in it is reached by flooding */
}

static void push(link_t *link, frame_t *f, ns_t key) {
    link->latest = later(link->latest, key);
    f->next = NULL;
    if (link->head) link->tail->next = f;
    else link->head = f;
    link->tail = f;
}

static void release(frame_t *f) {
    memory_used -= f->size;
    free(f);
}

/* Tell whether a frame must wait for more than the buffer holds. */
static int overflows(link_t *link, ns_t at) {
    int64_t waiting = link->rate && link->free > at
        ? (int64_t)((double)(link->free - at) * link->rate / 1e9) : 0;
    return waiting > buffer_bytes;
}

/* Put a frame of a device on its way to the switch. */
static void take(int p, const unsigned char *data, size_t size, ns_t at) {
    port_t *port = &ports[p];
    link_t *link = &port->in;
    if (!port->up || overflows(link, at) || memory_used > MAX_MEMORY) {
        link->dropped++;
        return;
    }
    frame_t *f = malloc(sizeof *f + size);
    if (!f) die("malloc");
    memory_used += size;
    memcpy(f->data, data, size);
    f->size = size;
    f->port = p;
    measure(f);
    ns_t start = later(at, link->free);
    ns_t packet = duration(link, f->packet), further = port->delay + port->forwards * packet;
    link->free = start + duration(link, f->wire);
    f->first = later(start + packet + further, link->latest);
    f->last = later(link->free + further, f->first);
    link->frames++;
    link->bytes += f->wire;
    push(link, f, f->first);
}

/* Put a frame that has come to the switch on its way to the device of a port. */
static void forward(int p, frame_t *f) {
    port_t *port = &ports[p];
    link_t *link = &port->out;
    if (!port->up || overflows(link, f->first)) {
        link->dropped++;
        release(f);
        return;
    }
    ns_t start = later(f->first, link->free);
    link->free = start + duration(link, f->wire);
    ns_t packet = duration(link, f->packet), further = port->delay + port->forwards * packet;
    f->last = later(later(link->free, f->last + packet) + further, link->latest);
    push(link, f, f->last);
}

static void flood(frame_t *f) {
    for (int p = 0; p < count; p++) {
        if (p == f->port) continue;
        frame_t *copy = malloc(sizeof *f + f->size);
        if (!copy) die("malloc");
        memcpy(copy, f, sizeof *f + f->size);
        memory_used += f->size;
        forward(p, copy);
    }
    release(f);
}

/* Send a frame on to the port of its address, or to all where that isn't known. */
static void arrive(frame_t *f) {
    const unsigned char *ethernet = f->data + sizeof(struct virtio_net_hdr);
    int from = slot(ethernet + 6), to;
    if (from >= 0) {
        learned[from].port = f->port;
        memcpy(learned[from].mac, ethernet + 6, 6);
    }
    if (!(ethernet[0] & 1) && (to = slot(ethernet)) >= 0 && learned[to].port >= 0) {
        if (learned[to].port != f->port) forward(learned[to].port, f);
        else release(f);
    } else {
        flood(f);
    }
}

static void deliver(int p, frame_t *f, ns_t at) {
    link_t *link = &ports[p].out;
    if (!ports[p].up || write(ports[p].fd, f->data, f->size) < 0) {
        link->dropped++;
    } else {
        link->frames++;
        link->bytes += f->wire;
    }
    ns_t lateness = later(0, at - f->last);
    late.frames++;
    late.sum += lateness;
    late.max = later(late.max, lateness);
    release(f);
}

/* Do what is due; return when there is something to do next. Which frame comes to the switch first
   is known a delay earlier: what devices have not yet sent can't overtake it. */
static ns_t settle(void) {
    for (;;) {
        ns_t next = NEVER;
        int which = -1, arrival = 0;
        for (int p = 0; p < count; p++) {
            const frame_t *in = ports[p].in.head, *out = ports[p].out.head;
            if (in && in->first - shortest < next)
                next = in->first - shortest, which = p, arrival = 1;
            if (out && out->last < next) next = out->last, which = p, arrival = 0;
        }
        if (which < 0) return NEVER;
        ns_t at = now_ns();
        if (next > at + (waking < slack ? waking : slack)) return next;
        link_t *link = arrival ? &ports[which].in : &ports[which].out;
        frame_t *f = link->head;
        link->head = f->next;
        if (arrival) arrive(f);
        else deliver(which, f, at);
    }
}

static void find_shortest(void) {
    shortest = NEVER;
    for (int p = 0; p < count; p++)
        if (ports[p].delay < shortest) shortest = ports[p].delay;
}

/* Answer one command: `status`; `up N`, `down N`; `delay N NANOSECONDS`; `rate N BYTES`. */
static void answer(int control) {
    static char text[65536];
    struct sockaddr_un peer;
    socklen_t length = sizeof peer;
    ssize_t n = recvfrom(control, text, 255, 0, (struct sockaddr *)&peer, &length);
    if (n < 0) return;
    text[n] = 0;
    int p = -1, known = 1;
    long long a = 0;
    char word[16] = "";
    int fields = sscanf(text, "%15s %d %lld", word, &p, &a);
    int named = fields >= 2 && p >= 0 && p < count;
    if (!strcmp(word, "status")) {
        size_t used = snprintf(text, sizeof text, "late %lld %lld %lld\n",
                               (long long)late.frames, (long long)late.sum, (long long)late.max);
        for (int i = 0; i < count; i++) {
            const link_t *in = &ports[i].in, *out = &ports[i].out;
            used += snprintf(text + used, sizeof text - used, "port %lld %lld %lld %lld\n",
                             (long long)in->bytes, (long long)in->dropped, (long long)out->bytes,
                             (long long)out->dropped);
        }
    } else {
        if (named && !strcmp(word, "up")) ports[p].up = 1;
        else if (named && !strcmp(word, "down")) ports[p].up = 0;
        else if (named && fields == 3 && !strcmp(word, "delay") && a >= 0) ports[p].delay = a;
        else if (named && fields == 3 && !strcmp(word, "rate") && a >= 0)
            ports[p].in.rate = ports[p].out.rate = a;
        else known = 0;
        find_shortest();
        strcpy(text, known ? "done\n" : "unknown command\n");
    }
    sendto(control, text, strlen(text), MSG_DONTWAIT, (struct sockaddr *)&peer, length);
}

static void open_port(port_t *port, const char *text) {
    long long delay, rate;
    if (sscanf(text, "%15[^:]:%lld:%lld:%d", port->name, &delay, &rate, &port->forwards) != 4) {
        fprintf(stderr, "%s is no NAME:DELAY:RATE:FORWARDS\n", text);
        exit(1);
    }
    port->delay = delay, port->in.rate = port->out.rate = rate, port->up = 1;
    port->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (port->fd < 0) die("/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    strcpy(request.ifr_name, port->name);
    if (ioctl(port->fd, TUNSETIFF, &request) < 0) die("TUNSETIFF");
    if (ioctl(port->fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0)
        die("TUNSETOFFLOAD");
}

/* Take what devices have sent, do what is due, sleep; for ever. */
static void serve(int control) {
    static unsigned char data[MAX_FRAME];
    ns_t next = NEVER;
    for (;;) {
        ns_t before = now_ns();
        ns_t wait = next == NEVER ? 1000000000 : later(0, next - waking - before);
        struct timespec timeout = {wait / 1000000000, wait % 1000000000};
        int ready = ppoll(polled, count + 1, &timeout, NULL);
        ns_t at = now_ns();
        if (!ready && wait) {
            ns_t lateness = later(0, at - before - wait);
            waking += ((lateness < MAX_WAKING ? lateness : MAX_WAKING) - waking) / 16;
        } else if (!wait) {
            waking -= waking / 256; /* what is never slept is never measured */
        }
        if (ready > 0) {
            if (polled[count].revents) answer(control);
            for (int p = 0; p < count; p++) {
                if (!polled[p].revents) continue;
                for (int i = 0; i < BURST; i++) {
                    ssize_t size = read(ports[p].fd, data, sizeof data);
                    if (size < (ssize_t)sizeof(struct virtio_net_hdr) + 14) break;
                    take(p, data, size, at);
                }
            }
        }
        next = settle();
    }
}

int main(int argc, char **argv) {
    if (argc < 5 || argc - 4 > MAX_PORTS) {
        fprintf(stderr, "switch CONTROL BUFFER SLACK NAME:DELAY:RATE:FORWARDS...\n");
        return 1;
    }
    buffer_bytes = atoll(argv[2]);
    slack = atoll(argv[3]);
    for (int i = 0; i < MAC_SLOTS; i++) learned[i].port = -1;
    for (count = 0; count < argc - 4; count++) {
        open_port(&ports[count], argv[4 + count]);
        polled[count] = (struct pollfd){ports[count].fd, POLLIN, 0};
    }
    /* Memory that is given back to the kernel would be asked for again, at a bad moment. */
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0) perror("mlockall");
    struct sched_param priority = {.sched_priority = PRIORITY};
    if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &priority) < 0)
        fprintf(stderr, "no real-time priority: %s\n", strerror(errno));

    int control = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(argv[1]) >= sizeof address.sun_path) errno = ENAMETOOLONG, die(argv[1]);
    strcpy(address.sun_path, argv[1]);
    if (bind(control, (struct sockaddr *)&address, sizeof address) < 0) die(argv[1]);
    polled[count] = (struct pollfd){control, POLLIN, 0};
    find_shortest();
    serve(control);
}
