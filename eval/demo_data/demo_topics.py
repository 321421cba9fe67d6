"""What the demo's support desk knows: topics, and the paragraphs that their answers share."""

from __future__ import annotations

from reprise.eval.demo_data.demo_parcels import PARCEL_TOPICS, Topic
from reprise.eval.demo_data.demo_payments import PAYMENT_TOPICS

__all__ = ["SHARED", "TOPICS", "Topic"]

# One paragraph a category, in every single-topic answer of that category.
SHARED: dict[str, str] = {
    "orders": (
        "Every change to an order is confirmed by email within a few minutes. If you do not see "
        "our message, look in your spam folder first and then write to us again."
    ),
    "delivery": (
        "Our carriers deliver from Monday to Saturday between eight in the morning and eight in "
        "the evening, and the tracking page shows each step as soon as the parcel has been "
        "scanned."
    ),
    "returns": (
        "Please keep the proof of postage until the case is closed. As soon as the parcel reaches "
        "our warehouse we check it within two working days and let you know the outcome by email."
    ),
    "billing": (
        "For your safety we never ask for a full card number by chat or by telephone. All "
        "payments are listed under Billing in your profile, where each entry can be saved as a "
        "file."
    ),
    "account": (
        "Changes to your profile take effect at once on every device. You may have to sign in "
        "again, and we will send a short notice to the address that we have on file."
    ),
    "products": (
        "The product page lists all technical data, the manual and answers from other customers. "
        "Our workshop team also gives advice by telephone on weekdays from nine to five."
    ),
    "service": (
        "Our support team works around the clock and answers most messages within two hours. Your "
        "case keeps its number until it is solved, so you never have to explain everything twice."
    ),
}

TOPICS: tuple[Topic, ...] = (
    *PARCEL_TOPICS,
    *PAYMENT_TOPICS,
    Topic(
        "reset_password",
        "account",
        (
            "reset my password",
            "get a new password",
            "recover the password I forgot",
        ),
        "Press Forgot password on the sign-in page and type the address that you registered with. "
        "You receive a link that works for one hour; choose at least twelve characters there. "
        "After five wrong attempts the account rests for fifteen minutes.",
    ),
    Topic(
        "locked_account",
        "account",
        (
            "unlock my account",
            "get into my blocked account",
            "have my account opened again",
        ),
        "Your account was locked because somebody typed a wrong password several times. Use the "
        "link in our warning message to prove that it is you, and the lock is lifted at once. If "
        "the link has run out, we can call the number that you gave us.",
    ),
    Topic(
        "change_email",
        "account",
        (
            "change my email address",
            "use another email for my account",
            "update the email you have for me",
        ),
        "Open Profile, then Contact, and enter the new address twice. We send one code to the old "
        "and one to the new mailbox, and both are needed. If the old mailbox no longer exists, a "
        "copy of a document with your name will do instead.",
    ),
    Topic(
        "delete_account",
        "account",
        (
            "delete my account",
            "close my account for good",
            "have my profile removed",
        ),
        "We are sad to see you go. Under Privacy you find the button Close account, which removes "
        "your profile, wish lists and reviews after a pause of fourteen days. Invoices must be "
        "kept by law and are locked away from everyone but the tax office.",
    ),
    Topic(
        "two_factor",
        "account",
        (
            "turn on two-step sign-in",
            "protect my sign-in with a code",
            "set up two-factor login",
        ),
        "Two-step sign-in is found under Security. Scan the picture with any code app, type the "
        "six digits that it shows and save the spare codes on paper. From then on each new device "
        "asks for a code once and can be trusted for thirty days.",
    ),
    Topic(
        "newsletter",
        "account",
        (
            "stop the newsletter",
            "unsubscribe from your emails",
            "get fewer advertising messages",
        ),
        "At the foot of each newsletter there is a link that ends it with one click. Under "
        "Messages you can choose instead to hear from us weekly, monthly or only when something "
        "on your wish list becomes cheaper. Messages about orders are sent in any case.",
    ),
    Topic(
        "data_copy",
        "account",
        (
            "get a copy of my data",
            "download everything you store about me",
            "see my personal data",
        ),
        "The law gives you the right to see your data, and we make it easy. Press Request copy "
        "under Privacy; within three days you receive an archive with your orders, addresses, "
        "messages and searches. It is sealed with a password that comes by post.",
    ),
    Topic(
        "register_product",
        "products",
        (
            "register the product from order {order}",
            "activate the guarantee of {order}",
            "sign up {order} for the warranty",
        ),
        "Registering {order} takes a minute and adds a third year of guarantee. Enter the serial "
        "number from the silver plate together with the day of purchase. You then receive a "
        "certificate, and a repair can be booked without looking for the receipt.",
    ),
    Topic(
        "repair",
        "products",
        (
            "have the device from {order} repaired",
            "book a repair for order {order}",
            "get {order} fixed under guarantee",
        ),
        "For a repair of {order}, describe the fault in the repair form and choose a day for "
        "collection. Please remove batteries and delete private files. The workshop needs about "
        "eight days, and if the fault returns within a year we exchange the device.",
    ),
    Topic(
        "spare_part",
        "products",
        (
            "order a spare part for {order}",
            "find a replacement part for the machine from {order}",
            "buy a missing screw for {order}",
        ),
        "Spare parts for {order} are kept for ten years. Open the exploded drawing on the parts "
        "page, point at the piece and it goes into the basket with the right number. Small parts "
        "such as screws, feet and caps are sent free of charge in a letter.",
    ),
    Topic(
        "back_in_stock",
        "products",
        (
            "know when an article is back in stock",
            "be told when a sold-out product returns",
            "reserve something that is out of stock until {date}",
        ),
        "Press the bell beside the article and we write to you the moment it can be bought again. "
        "The first hundred people on the list have a full day before everybody else. Deliveries "
        "from the makers usually arrive at the start of the week.",
    ),
    Topic(
        "set_up_device",
        "products",
        (
            "set up my new device",
            "start the machine for the first time",
            "connect the appliance to my network",
        ),
        "Place the device near the router, hold the round button for five seconds and wait for "
        "the blue light. Then open the app, choose Add device and follow the four pictures. If "
        "the light blinks red, the name of the network contains a sign that it cannot read.",
    ),
    Topic(
        "talk_to_agent",
        "service",
        (
            "talk to a human",
            "speak with a real person",
            "be called back on {date}",
        ),
        "I am happy to pass you on to a colleague. Type your telephone number with the area code "
        "and choose a quarter of an hour that suits you; we then ring from a local number. People "
        "who cannot hear well may ask for a chat with pictures instead.",
    ),
    Topic(
        "complaint",
        "service",
        (
            "file a complaint about order {order}",
            "make a formal complaint",
            "complain about the service I had on {date}",
        ),
        "We take complaints seriously and want to learn from yours. Tell us in the form what "
        "happened, when, and what would put it right. A manager who was not involved reads it, "
        "replies within three days and may offer a credit for the trouble.",
    ),
    Topic(
        "book_visit",
        "service",
        (
            "book a technician for {date}",
            "have someone come and install it on {date}",
            "arrange a visit on {date}",
        ),
        "A technician can be with you on {date}. Please choose the morning or the afternoon, say "
        "on which floor you live and keep two square metres free. The visit takes about an hour, "
        "old appliances are taken along and the first training is included.",
    ),
    Topic(
        "loyalty_points",
        "service",
        (
            "turn my points into {amount}",
            "find out how many loyalty points I have",
            "spend my bonus points, worth {amount}",
        ),
        "Every purchase earns points that appear after the time for returns is over. They are "
        "listed beside the crown in your profile and can be turned into a voucher from five "
        "hundred upwards. Points that are not used for two years fade away.",
    ),
)
