"""Topics of the demo's support desk that are about orders, their delivery and their return."""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """One thing that customers ask about. `{order}`, `{amount}` and `{date}` are slots."""

    name: str
    category: str
    phrases: tuple[str, str, str]
    """Ways to say it, each fitting after "to"."""
    body: str
    """The part of the answer that belongs to this topic alone; its slots are in every phrase."""


PARCEL_TOPICS: tuple[Topic, ...] = (
    Topic(
        "cancel_order",
        "orders",
        (
            "cancel order {order}",
            "call off my purchase {order}",
            "stop order {order} before it ships",
        ),
        "Order {order} can be cancelled free of charge as long as it has not been packed. Open My "
        "Orders, choose the order, press Cancel and pick a reason from the list. If the button is "
        "grey, the parcel has already left and you can simply refuse it at the door.",
    ),
    Topic(
        "change_order",
        "orders",
        (
            "change an item in order {order}",
            "edit order {order}",
            "swap something in my order {order}",
        ),
        "To change what is in order {order}, open My Orders and press Edit basket. Items can be "
        "added, removed or exchanged for another size until the packing slip is printed. The "
        "difference in price is charged to, or returned to, the card that you paid with.",
    ),
    Topic(
        "order_status",
        "orders",
        (
            "see the status of order {order}",
            "find out where order {order} stands",
            "check on order {order}",
        ),
        "The status of order {order} is shown under My Orders as a coloured bar. Grey means "
        "received, yellow means being packed, blue means handed to the carrier and green means "
        "delivered. The bar is refreshed every half hour during the day.",
    ),
    Topic(
        "missing_confirmation",
        "orders",
        (
            "get the confirmation for order {order}",
            "receive the missing confirmation of {order}",
            "have the email about order {order} sent again",
        ),
        "I have looked up {order} and the order is safely in our system. A second confirmation "
        "can be requested with the envelope symbol next to the order number. Should the address "
        "on file have a typing error, correct it first and then press the symbol again.",
    ),
    Topic(
        "bulk_order",
        "orders",
        (
            "place a bulk order by {date}",
            "order in large quantities for {date}",
            "buy fifty units before {date}",
        ),
        "For large quantities we offer a rising discount that starts at twenty pieces. Fill in "
        "the trade form with the articles, the amounts and {date} as the day of need, and a "
        "colleague from the wholesale desk prepares a written offer within one working day.",
    ),
    Topic(
        "repeat_order",
        "orders",
        (
            "repeat order {order}",
            "buy the same things as in {order} again",
            "reorder everything from {order}",
        ),
        "You can repeat {order} with a single click. Go to My Orders, open the old order and "
        "choose Buy again; everything that is still in stock moves to your basket at the current "
        "price. Articles that are sold out are shown at the top with a similar one beside them.",
    ),
    Topic(
        "track_parcel",
        "delivery",
        (
            "track the parcel of order {order}",
            "follow my package {order}",
            "find out where parcel {order} is",
        ),
        "The parcel of order {order} carries a tracking number that you find in the shipping "
        "email and under My Orders. Enter it on the tracking page to see the last depot and the "
        "expected hour of arrival. A new scan can take up to a day to appear.",
    ),
    Topic(
        "late_delivery",
        "delivery",
        (
            "find out why order {order} is late",
            "get order {order}, which was promised for {date}",
            "complain about the delay of {order}",
        ),
        "Order {order} should have been with you by now, and I am looking into it. I have asked "
        "the carrier to search the depot and to give it priority. If nothing arrives within two "
        "working days, we send a replacement by express at our own expense.",
    ),
    Topic(
        "change_address",
        "delivery",
        (
            "change the delivery address of order {order}",
            "send order {order} to another address",
            "correct the address on {order}",
        ),
        "The address of {order} can be altered until the label is printed. Open the order, press "
        "Edit next to the address, type the new street and postcode and save. After that only the "
        "carrier can redirect the parcel, with the link in the shipping email.",
    ),
    Topic(
        "delivery_date",
        "delivery",
        (
            "choose {date} as my delivery day",
            "have my parcel delivered on {date}",
            "move the delivery to {date}",
        ),
        "I can see that {date} is still free in our calendar. Choose it on the checkout page "
        "under Delivery day, or for an order that is already placed with the button Reschedule. A "
        "chosen day costs nothing extra, while a window of two hours costs a small fee.",
    ),
    Topic(
        "pickup_point",
        "delivery",
        (
            "collect order {order} at a pickup point",
            "pick up {order} from a shop near me",
            "have {order} sent to a parcel locker",
        ),
        "Order {order} can be sent to any of our pickup points. Select the map symbol in the "
        "order, enter your postcode and mark the shop or locker that suits you. A parcel waits "
        "there for seven days; bring the collection code and a document with your picture.",
    ),
    Topic(
        "ship_abroad",
        "delivery",
        (
            "have an order shipped abroad by {date}",
            "send a gift to another country before {date}",
            "order from overseas for {date}",
        ),
        "We ship to thirty countries. Duties and import tax are worked out at the checkout, so "
        "that nothing has to be paid at the door. To arrive by {date}, the parcel should leave us "
        "at least ten days earlier; remote islands need a few days more.",
    ),
    Topic(
        "lost_parcel",
        "delivery",
        (
            "report that parcel {order} is lost",
            "get help with {order}, marked delivered but not here",
            "find my lost package {order}",
        ),
        "I am opening a search for parcel {order}. Please ask your neighbours and look for a card "
        "from the driver, since most such parcels turn up within a day. If the search ends "
        "without a result, you may choose between a new parcel and your money back.",
    ),
    Topic(
        "return_item",
        "returns",
        (
            "return an item from order {order}",
            "send back part of {order}",
            "give back something from order {order}",
        ),
        "You have thirty days to return anything from order {order}. Open the order, mark the "
        "article, tell us the reason and print the label. Pack the article in its own box if you "
        "still have it, and hand the parcel in at any post office without paying.",
    ),
    Topic(
        "refund_status",
        "returns",
        (
            "know when my refund of {amount} arrives",
            "check the refund of {amount} for order {order}",
            "get my {amount} back",
        ),
        "Your refund of {amount} has been approved and handed to the bank. Cards show it after "
        "three to five working days, a bank transfer takes two and store credit is there at once. "
        "The booking carries our name and the word refund, so that it is easy to find.",
    ),
    Topic(
        "exchange_size",
        "returns",
        (
            "exchange an article of {order} for another size",
            "get a different size for order {order}",
            "swap {order} for a larger one",
        ),
        "An exchange for order {order} costs you nothing. Choose Exchange instead of Return, pick "
        "the new size or colour and we put one aside for ten days. The new article leaves our "
        "warehouse as soon as the old one has been scanned at the post office.",
    ),
    Topic(
        "damaged_item",
        "returns",
        (
            "report a damaged article in order {order}",
            "complain about the broken item from {order}",
            "get a new one because {order} arrived broken",
        ),
        "That is not how order {order} should have reached you. Please take two pictures, one of "
        "the damage and one of the box, and add them to the claim form. We then send a new "
        "article the same day, and you need not send the broken one back.",
    ),
    Topic(
        "wrong_item",
        "returns",
        (
            "report that order {order} contains the wrong article",
            "get the right product for {order}",
            "sort out {order}, where something else was in the box",
        ),
        "It seems that two labels were mixed up when {order} was packed. Keep the wrong article "
        "in its box, and we have it collected from your door on a day of your choice. The right "
        "one is sent out today with priority and without any cost to you.",
    ),
    Topic(
        "return_label",
        "returns",
        (
            "get a new return label for {order}",
            "print the label to send {order} back",
            "receive the return sticker for order {order}",
        ),
        "A fresh label for {order} is waiting under Returns in your profile. It is valid for "
        "fourteen days. If you have no printer, show the square code on your telephone at the "
        "counter and the clerk prints the label for you at no charge.",
    ),
    Topic(
        "gift_return",
        "returns",
        (
            "return a gift from order {order}",
            "give back a present, number {order}",
            "exchange a gift with code {order}",
        ),
        "Gifts can be returned without the buyer noticing. Enter {order} on the gift page, choose "
        "what you would like to give back and print the label. The value is paid out as a "
        "voucher, which can be spent on anything in the shop for three years.",
    ),
)
